"""Every stream, bucket and object store of the bus: its configuration, and how a running installation is brought to it (design.md §3)."""

from __future__ import annotations

import asyncio
import hashlib
from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Any, Final, Literal

import nats.errors
import orjson
import structlog
from nats.aio.client import Client

from bus import subjects

log = structlog.get_logger(__name__)

Config = dict[str, Any]
"""A stream's configuration in the server's own JSON: durations in nanoseconds, sizes in bytes."""

SECOND: Final = 1_000_000_000
DAY: Final = 86_400 * SECOND
GIB: Final = 1 << 30
DUPLICATE_WINDOW: Final = 120 * SECOND
"""How long JetStream itself knows a ``Nats-Msg-Id`` again; beyond it the commits do (design.md §3)."""

FIXED: Final = frozenset({"storage", "retention", "max_consumers"})
"""What the server, or prudence, does not change on a stream that exists."""
LANE_FIXED: Final = frozenset({"subjects", "subject_transform", "metadata"})
"""What spreads the lanes: changed under way, orders would go where nobody reads."""
ONE_WAY: Final = frozenset({"deny_delete", "deny_purge", "allow_msg_ttl", "allow_msg_schedules"})
"""Flags that can be raised and never lowered."""
ATTEMPTS: Final = 60
PAUSE_S: Final = 0.1


class StreamMismatchError(Exception):
    """A stream exists with a configuration that cannot be changed into ours. The message names stream, field and both values."""


@dataclass(frozen=True, slots=True)
class Settings:
    """What differs between installations.

    ``shards`` partitions the node lanes over streams (reference/jetstream-eventstore.md §3.6: 16 for a thousand nodes). It is chosen when
    the streams are made and stored with them, where everybody finds it (``lane_shards``); None: as it is there, at first 1. ``max_nodes``
    is the number of consumers one of them admits, since the server's own default stops at 1000.
    """

    replicas: int = 1
    storage: Literal["file", "memory"] = "file"
    shards: int | None = None
    max_nodes: int = 20_000
    log_bytes: int = GIB
    log_age_s: int = 3 * 86_400
    log_lines: int = 20_000


SHARDS: Final = "strandline-shards"
"""The name under which the number of lane streams stands in the metadata of the first of them; absent for 1."""


def lane_shard(node: str, shards: int = 1) -> int:
    """Which partition carries a node's lane: the same in every process and version."""
    return int.from_bytes(hashlib.sha256(node.encode()).digest()[:8]) % shards


def lane_stream(node: str, shards: int = 1) -> str:
    """``LANES-<shard>``: the stream with the node's orders, whose stored subjects are ``strand.lane.<node>.<verb>``."""
    return f"LANES-{lane_shard(node, shards)}"


def lane_entry(node: str, verb: str, shards: int = 1) -> str:
    """The subject to publish an order on. Hashes cannot be told apart by wildcards, so with several partitions it carries the number,
    ``strand.lanes.<shard>.<node>.<verb>``, and the stream stores it as ``strand.lane.<node>.<verb>``.
    """
    if shards == 1:
        return subjects.lane(node, verb)
    return f"strand.lanes.{lane_shard(node, shards)}.{subjects.token(node)}.{subjects.token(verb)}"


def all_streams(settings: Settings) -> Iterator[Config]:
    """The configuration of everything, by design.md §3."""
    yield {
        "name": subjects.EVENTS,
        "subjects": [subjects.ALL_EVENTS],
        "deny_delete": True,
        "deny_purge": True,
        "allow_atomic": True,
        "duplicate_window": DUPLICATE_WINDOW,
    }
    yield {"name": subjects.SNAPS, "subjects": [subjects.ALL_SNAPS], "max_msgs_per_subject": 1}
    yield {"name": subjects.RECEIPTS, "subjects": [subjects.ALL_RECEIPTS], "max_msgs_per_subject": 1, "allow_msg_ttl": True}
    yield {"name": subjects.SUBMIT, "subjects": [subjects.ALL_SUBMITTED], "retention": "workqueue", "duplicate_window": DUPLICATE_WINDOW}
    yield {"name": subjects.OUTCOME, "subjects": [subjects.ALL_OUTCOMES], "max_msgs_per_subject": 1, "max_age": 7 * DAY}
    yield {"name": subjects.REPORTS, "subjects": [subjects.ALL_REPORTS], "retention": "workqueue", "duplicate_window": DUPLICATE_WINDOW}
    yield {
        "name": subjects.TIMERS,
        "subjects": [subjects.ALL_TIMERS, subjects.ALL_DUE],
        "max_msgs_per_subject": 1,
        "allow_msg_schedules": True,
        "allow_msg_ttl": True,
    }
    yield {
        "name": subjects.DEAD,
        "subjects": ["$JS.EVENT.ADVISORY.CONSUMER.MAX_DELIVERIES.>", "$JS.EVENT.ADVISORY.CONSUMER.MSG_TERMINATED.>", subjects.ALL_DEAD],
        "max_age": 30 * DAY,
        "max_msgs": 100_000,
        "max_bytes": GIB,
    }
    yield {
        "name": subjects.LOGS,
        "subjects": [subjects.ALL_LOGS],
        "max_age": settings.log_age_s * SECOND,
        "max_bytes": settings.log_bytes,
        "max_msgs_per_subject": settings.log_lines,
    }
    yield from (_lane(shard, settings) for shard in range(settings.shards or 1))
    yield from (_bucket(name) for name in (subjects.NODES_BUCKET, subjects.LEASES_BUCKET))
    yield _object_store(subjects.ARTIFACTS_BUCKET)
    yield {
        "name": subjects.CHUNKS,
        "subjects": [subjects.ALL_CHUNKS, subjects.ALL_MANIFESTS],
        "max_msgs_per_subject": 1,
        "discard": "new",
        "discard_new_per_subject": True,
        "allow_rollup_hdrs": False,
    }


def _lane(shard: int, settings: Settings) -> Config:
    config: Config = {
        "name": f"LANES-{shard}",
        "subjects": ["strand.lane.>"],
        "retention": "workqueue",
        "max_consumers": settings.max_nodes,
        "allow_msg_ttl": True,
        "duplicate_window": DUPLICATE_WINDOW,
    }
    if settings.shards is not None and settings.shards > 1:
        config["metadata"] = {SHARDS: str(settings.shards)}
        config["subjects"] = [f"strand.lanes.{shard}.*.*"]
        config["subject_transform"] = {"src": f"strand.lanes.{shard}.*.*", "dest": "strand.lane.{{wildcard(1)}}.{{wildcard(2)}}"}
    return config


def _bucket(name: str) -> Config:
    """A key-value bucket with a TTL per key, without limit markers: those confuse ``create`` (reference, pitfall 11).

    Without roll-ups too: a node may write its own key, and one header on that would wipe everybody's.
    """
    return {
        "name": f"KV_{name}",
        "subjects": [f"$KV.{name}.>"],
        "max_msgs_per_subject": 1,
        "discard": "new",
        "deny_delete": True,
        "allow_rollup_hdrs": False,
        "allow_msg_ttl": True,
        "duplicate_window": DUPLICATE_WINDOW,
    }


def _object_store(name: str) -> Config:
    return {
        "name": f"OBJ_{name}",
        "subjects": [f"$O.{name}.C.>", f"$O.{name}.M.>"],
        "discard": "new",
        "allow_rollup_hdrs": False,
    }


async def ensure_streams(
    nc: Client, replicas: int = 1, storage: Literal["file", "memory"] = "file", *, settings: Settings | None = None
) -> None:
    """Create what is missing and mend what differs; several processes may do so at once. ``settings`` wins over the short arguments.

    Raises ``StreamMismatchError`` where a difference cannot be mended, and ``nats.errors.Error`` when the bus does not answer.
    """
    wanted = settings or Settings(replicas=replicas, storage=storage)
    known = await _known_shards(nc)
    if known is not None and wanted.shards not in {None, known}:
        raise StreamMismatchError(f"the lanes are in {known} streams and cannot be in {wanted.shards}: orders would be lost")
    wanted = replace(wanted, shards=known or wanted.shards or 1)
    for config in all_streams(wanted):
        await ensure_stream(nc, {"allow_direct": True, **config, "storage": wanted.storage, "num_replicas": wanted.replicas})


async def lane_shards(nc: Client) -> int:
    """Over how many streams this installation's lanes are spread: the one answer, for all who send, attach or read."""
    return await _known_shards(nc) or 1


async def _known_shards(nc: Client) -> int | None:
    """As stored with the first lane stream; None while there is none."""
    reply = await _api(nc, "STREAM.INFO.LANES-0", {})
    if "error" in reply:
        return None
    return int((reply["config"].get("metadata") or {}).get(SHARDS, 1))


async def ensure_stream(nc: Client, config: Config) -> None:
    """One stream; see :func:`ensure_streams`. Returns when it has a leader."""
    name = config["name"]
    for _ in range(ATTEMPTS):
        reply = await _api(nc, f"STREAM.INFO.{name}", {})
        error = reply.get("error")
        if error is not None and error["code"] == 404:
            error = (await _api(nc, f"STREAM.CREATE.{name}", config)).get("error")
        elif error is None:
            change = _change(config, reply["config"])
            if not change and _led(reply):
                return
            if change:
                log.info("stream.updated", stream=name, fields=sorted(change))
                error = (await _api(nc, f"STREAM.UPDATE.{name}", reply["config"] | change)).get("error")
        if error is not None and not _passing(error):
            raise StreamMismatchError(f"stream {name}: {error.get('description')} ({error.get('err_code')})")
        if error is not None or config["num_replicas"] > 1:
            await asyncio.sleep(PAUSE_S)
    raise nats.errors.TimeoutError


def _led(info: dict[str, Any]) -> bool:
    """True when the stream can be written: a new replicated stream has no leader for about 100 ms."""
    cluster = info.get("cluster")
    return cluster is None or bool(cluster.get("leader"))


def _passing(error: dict[str, Any]) -> bool:
    """Whether asking again can help: no leader yet (503), or another process created the stream with other settings meanwhile (10058)."""
    return error.get("code") in {408, 429, 503} or error.get("err_code") == 10058


def _change(wanted: Config, found: Config) -> Config:
    """The fields to set. Raises ``StreamMismatchError`` for those that cannot be. What we do not set is the operator's."""
    change: Config = {}
    for field, value in _with_defaults(wanted).items():
        actual = found.get(field, _ABSENT.get(field))
        if field == "metadata":  # the server keeps notes of its own beside ours
            actual = {key: (actual or {}).get(key) for key in value}
        if actual == value:
            continue
        refused = (
            field in FIXED
            or (field in LANE_FIXED and wanted["name"].startswith("LANES-"))
            or (field in ONE_WAY and not value)
            or (field == "num_replicas" and value < actual)
        )
        if refused:
            raise StreamMismatchError(f"stream {wanted['name']}: {field} is {actual!r} and cannot become {value!r}")
        change[field] = value
    return change


_ABSENT: Final[Config] = dict.fromkeys(
    ("deny_delete", "deny_purge", "allow_atomic", "allow_msg_ttl", "allow_msg_schedules", "allow_rollup_hdrs", "allow_direct"), False
) | {"max_age": 0}
"""What the server leaves out of a configuration when it is not set."""


def _with_defaults(wanted: Config) -> Config:
    """Fields whose default matters, so that a stream of an older version which set them is brought back."""
    return {"retention": "limits", "max_age": 0, "deny_delete": False, "deny_purge": False} | wanted


async def _api(nc: Client, verb: str, body: Config) -> dict[str, Any]:
    """One JetStream API request, patient with a bus that has no leader yet."""
    for attempt in range(ATTEMPTS):
        try:
            message = await nc.request(f"$JS.API.{verb}", orjson.dumps(body) if body else b"", timeout=5)
            reply: dict[str, Any] = orjson.loads(message.data)
        except (nats.errors.NoRespondersError, nats.errors.TimeoutError):
            # a cluster that has just come up knows JetStream before it has a leader for it, and then does not answer at all
            if attempt + 1 == ATTEMPTS:
                raise
            await asyncio.sleep(PAUSE_S)
        else:
            return reply
    raise nats.errors.TimeoutError
