"""``sandbox.update-limits``: as far as the driver can and the node has room, and counted from the moment it is asked for."""

from __future__ import annotations

from support.places import refusal
from support.waiting import eventually

from domain.nodes.orders import Failure, Verb
from domain.sandboxes.sandbox import Sandbox
from domain.sandboxes.spec import Limits


async def able(place, *flags: str, **capacity) -> None:
    """The node says that its driver can do this."""
    place.node.flags = flags
    await place.node.hello(**capacity)
    await eventually(lambda: place.plane.control.fleet.nodes["node-1"].flags == {"sim": flags})


def used(place) -> tuple[float, int]:
    node = place.plane.control.fleet.nodes["node-1"]
    return node.used_cpu, node.used_memory_mb


def test_limits_change_while_it_runs_and_the_node_counts_them(at) -> None:
    async def test(place) -> None:
        await able(place, "limits", "live-limits", memory_mb=1000)
        sandbox = await place.sandbox(await place.template(memory_mb=400))
        asked = {"sandbox_id": sandbox, "memory_mb": 900, "cpu": 2, "wait_s": 10}
        assert (await place.do("sandbox.update-limits", asked))["settled"]
        assert (await place.get(Sandbox, sandbox)).limits == Limits(cpu=2, memory_mb=900, pids=1024)
        (order,) = place.node.did(Verb.SANDBOX_LIMITS)
        assert {n: order.body[n] for n in ("cpu", "memory_mb", "pids")} == {"cpu": 2, "memory_mb": 900, "pids": 1024}
        await eventually(lambda: used(place) == (2, 900))
        short = await refusal(place.do("sandbox.update-limits", {"sandbox_id": sandbox, "memory_mb": 1001}))
        assert (short.code, short.details["short_of"]) == ("capacity.exhausted", {"node-1": "memory"})
        await place.do("sandbox.update-limits", {"sandbox_id": sandbox, "memory_mb": 100, "wait_s": 10})
        await eventually(lambda: used(place) == (2, 100))
        await place.do("sandbox.delete", {"sandbox_id": sandbox, "wait_s": 10})
        await eventually(lambda: used(place) == (0, 0))

    at(test)


def test_what_the_node_refuses_is_told_and_counts_no_longer(at) -> None:
    async def test(place) -> None:
        await able(place, "limits", "live-limits", memory_mb=1000)
        sandbox = await place.sandbox(await place.template(memory_mb=400))
        place.node.hold = lambda order: order.verb == Verb.SANDBOX_LIMITS
        await place.do("sandbox.update-limits", {"sandbox_id": sandbox, "memory_mb": 900})
        await eventually(lambda: bool(place.node.did(Verb.SANDBOX_LIMITS)))
        assert used(place) == (1, 900), "promised from the moment it is asked for"
        place.node.refuse = lambda _: Failure(code="limits.refused", message="it cannot grow")
        await place.node.answer(place.node.did(Verb.SANDBOX_LIMITS)[0])
        await eventually(lambda: used(place) == (1, 400))
        place.node.hold = lambda _: False
        told = await refusal(place.do("sandbox.update-limits", {"sandbox_id": sandbox, "memory_mb": 900, "wait_s": 10}))
        assert told.code == "limits.refused"
        assert (await place.get(Sandbox, sandbox)).limits.memory_mb == 400

    at(test)


def test_a_driver_that_cannot_is_not_asked(at) -> None:
    async def test(place) -> None:
        sandbox = await place.sandbox(await place.template())
        await able(place, "live-limits", "rlimit-memory")
        refused = await refusal(place.do("sandbox.update-limits", {"sandbox_id": sandbox, "memory_mb": 64, "cpu": 2}))
        assert (refused.code, refused.details["fields"]) == ("sandbox.unsupported", ["cpu"])
        await place.do("sandbox.update-limits", {"sandbox_id": sandbox, "memory_mb": 64, "wait_s": 10})
        await able(place, "limits")
        refused = await refusal(place.do("sandbox.update-limits", {"sandbox_id": sandbox, "memory_mb": 32}))
        assert (refused.code, refused.details["fields"]) == ("sandbox.unsupported", ["memory_mb"])
        assert len(place.node.did(Verb.SANDBOX_LIMITS)) == 1

    at(test)
