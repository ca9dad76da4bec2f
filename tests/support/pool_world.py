"""Pools in every state."""

from __future__ import annotations

from support.gwt import T0, did
from support.world import Row, World

from domain.sandboxes.pool import Pool, PoolSettings

SANDBOX, OTHER_SANDBOX = "sb-" + "a" * 20, "sb-" + "b" * 20
TEMPLATE = "tpl-" + "1" * 24
HOUR = 3600.0


def pool() -> Pool:
    return Pool.create(TEMPLATE, T0, PoolSettings(desired=2))


MEMBER, MEMBER_READY = did("add", SANDBOX, 1), did("ready", SANDBOX)
POOLS = World(
    pool,
    {
        "state": {
            "ACTIVE": (MEMBER,),
            "DELETING": (MEMBER, did("request_delete")),
            "GONE": (did("request_delete"), did("finish")),
        }
    },
    {
        "configure": Row(did("configure", PoolSettings(desired=3))),
        "add": Row(did("add", OTHER_SANDBOX, 2)),
        "ready": Row(MEMBER_READY),
        "retire": Row(did("retire", SANDBOX)),
        "left": Row(did("left", SANDBOX, True)),
        "hand_over": Row(did("hand_over", SANDBOX), {"ACTIVE": (MEMBER_READY,)}),
        "miss": Row(did("miss", OTHER_SANDBOX), again=True),
        "recover": Row(
            did("recover", after=HOUR), {"ACTIVE": (did("left", SANDBOX, True), did("add", OTHER_SANDBOX, 2), did("ready", OTHER_SANDBOX))}
        ),
        "request_delete": Row(did("request_delete")),
        "finish": Row(
            did("finish"),
            {
                "ACTIVE": (did("configure", PoolSettings()), did("retire", SANDBOX), did("left", SANDBOX)),
                "DELETING": (did("left", SANDBOX),),
            },
        ),
    },
)
