"""Whoever waits for something lends its place: a control plane full of waiting callers goes on answering."""

from __future__ import annotations

import asyncio

from support.waiting import eventually

from domain.nodes.orders import Verb

LONG: dict[str, object] = {"wait_s": 60}


def test_callers_that_wait_do_not_keep_others_from_being_answered(at) -> None:
    async def test(place) -> None:
        template = await place.template()
        used = await place.sandbox(template)
        other = await place.sandbox(template)
        place.node.hold = lambda order: order.verb != Verb.SANDBOX_DESTROY
        waiting = {
            "sandbox.create": {"template": template, **LONG},
            "sandbox.pause": {"sandbox_id": used, **LONG},
            "sandbox.exec": {"sandbox_id": other, "cmd": ["sleep"], "timeout_s": 60},
            "template.create": {"image": "oci:/new", **LONG},
            "snapshot.create": {"sandbox_id": other, **LONG},
            "template.delete": {"template": await another(place), **LONG},
            "compat.rescan": {"all": True, **LONG},
        }
        tasks = {name: asyncio.create_task(place.caller.command("default", name, body, timeout=90)) for name, body in waiting.items()}
        verbs = {Verb.SANDBOX_PROVISION, Verb.SANDBOX_PAUSE, Verb.SANDBOX_EXEC, Verb.IMAGE_RESOLVE, Verb.SANDBOX_SNAPSHOT}
        verbs |= {Verb.REPLICA_REMOVE, Verb.NODE_INSPECT}
        await eventually(lambda: verbs <= {order.verb for order in place.node.orders})
        assert not [name for name, task in tasks.items() if task.done()]
        async with asyncio.timeout(10):
            await place.do("sandbox.delete", {"sandbox_id": used, "wait_s": 5})
        place.node.hold = lambda order: False
        for order in list(place.node.orders):
            await place.node.answer(order)
        ended, late = await asyncio.wait(tasks.values(), timeout=15)
        assert not [name for name, task in tasks.items() if task in late]
        assert [task.exception() for task in ended] == [None] * len(waiting)

    async def another(place) -> str:
        place.node.hold = lambda order: False
        made = await place.template(memory_mb=77)
        place.node.hold = lambda order: order.verb != Verb.SANDBOX_DESTROY
        return made

    at(test, places=2)
