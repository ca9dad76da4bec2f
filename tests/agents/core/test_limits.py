"""``sandbox-limits`` on a node: kept by the driver, remembered by the node, also over its own death and a rollback."""

from __future__ import annotations

from support.local_node import SNAPSHOT

from domain.nodes.orders import ReportKind, Verb

WANTED = {"cpu": 2.0, "memory_mb": 96, "pids": 50}


def kept(rig) -> tuple[float, int, int]:
    """What the simulator keeps it to."""
    return rig.driver._state.sandboxes[rig.sandbox()].limits


def test_other_limits_hold_from_now_on_also_for_the_next_agent_and_after_a_rollback(rig, run):
    async def scenario():
        async with rig.life(orderly=False):
            target = {"sandbox_id": await rig.up()}
            assert (await rig.tell(Verb.SANDBOX_SNAPSHOT, {**target, "snapshot_id": SNAPSHOT})).kind is ReportKind.DONE
            assert (await rig.tell(Verb.SANDBOX_LIMITS, {**target, **WANTED})).kind is ReportKind.DONE
            assert kept(rig) == tuple(WANTED.values())
        async with rig.life():
            assert rig.node.get(rig.sandbox()).spec.recipe.memory_mb == 96
            back = {**target, "snapshot_id": SNAPSHOT, "generation": 1}
            assert (await rig.tell(Verb.SANDBOX_ROLLBACK, back)).kind is ReportKind.DONE
            assert kept(rig) == tuple(WANTED.values())

    run(scenario())


def test_a_sandbox_that_has_ended_and_a_driver_that_cannot_are_told_apart(rig, run):
    async def scenario():
        async with rig.life():
            target = {"sandbox_id": await rig.up()}
            rig.driver.flags = ("exec",)
            assert (await rig.tell(Verb.SANDBOX_LIMITS, {**target, **WANTED})).error.code == "driver.unsupported"
            await rig.tell(Verb.SANDBOX_STOP, {**target, "grace_s": 0})
            assert (await rig.tell(Verb.SANDBOX_LIMITS, {**target, **WANTED})).error.code == "sandbox.not-running"

    run(scenario())
