"""A node that is cut off from the bus, and comes back: what runs there is unknown meanwhile, not gone, and nothing runs twice after it."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta

import pytest
from support.agents import NODE, AgentProcess
from support.cut import wired
from support.kept import HEEDS, kept, pids
from support.waiting import eventually, run

from domain.nodes.node import Liveness
from domain.sandboxes.sandbox import Sandbox, SandboxState
from handlers.control import Deadlines

pytestmark = pytest.mark.slow

QUICK = Deadlines(node_dead_s=1.5, watchdog_s=0.2)


async def becomes(place, liveness: Liveness) -> None:
    async def is_so() -> bool:
        return (await place.node()).liveness is liveness

    await eventually(is_so, 20)


def test_a_partitioned_node_keeps_what_it_runs_and_does_once_what_waited_for_it(server, built, tmp_path) -> None:
    async def scenario() -> None:
        async with wired(server.url) as wire, kept(server, tmp_path / "strand", *built, QUICK, wire=wire) as place:  # noqa: SIM117
            async with AgentProcess(place, "process", "--heartbeat", "0.2"):
                await place.online()
                stays, goes = await place.placed("stays"), await place.placed("goes", HEEDS)
                for sandbox in (stays, goes):
                    await place.becomes(sandbox, SandboxState.RUNNING)
                before, version = pids("stays"), (await place.get(Sandbox, stays)).version
                wire.cut()
                await becomes(place, Liveness.OFFLINE)
                await place.do("sandbox.stop", {"sandbox_id": goes})
                late = await place.placed("late")
                assert (await place.get(Sandbox, stays)).state is SandboxState.RUNNING, "nobody knows, and nobody says that it is gone"
                assert (await place.get(Sandbox, goes)).state is SandboxState.STOPPED, "wanted, and not done"
                assert (pids("stays"), bool(pids("goes")), pids("late")) == (before, True, set())
                wire.heal()
                await becomes(place, Liveness.ONLINE)
                await place.becomes(late, SandboxState.RUNNING)
                assert (await place.becomes(goes, SandboxState.DEAD)).exit.code == 0, "asked to end, and not killed"
                assert {path.name for path in (place.own / "logs").glob("sb-*")} == {stays, late}
                assert (pids("stays"), pids("goes"), len(pids("late"))) == (before, set(), len(before))
                assert (await place.get(Sandbox, stays)).version == version, "nothing has happened to it"

    run(scenario())


def test_what_was_given_up_during_a_partition_is_ended_when_the_node_is_let_in_again(server, built, tmp_path) -> None:
    """Evicted, so dead by decision; what it runs all the same must not run beside whatever has taken its place."""

    async def scenario() -> None:
        async with wired(server.url) as wire, kept(server, tmp_path / "strand", *built, QUICK, wire=wire) as place:  # noqa: SIM117
            async with AgentProcess(place, "process", "--heartbeat", "0.2", "--look", "0.3"):
                await place.online()
                given_up = await place.placed("given-up")
                await place.becomes(given_up, SandboxState.RUNNING)
                wire.cut()
                await becomes(place, Liveness.OFFLINE)
                await place.do("node.evict", {"node_id": NODE})
                await place.becomes(given_up, SandboxState.DEAD)
                wire.heal()
                await place.do("node.enroll", {"node_id": NODE})
                await becomes(place, Liveness.ONLINE)
                assert pids("given-up"), "what it was told during its last minutes comes first"
                place.plane.control.clock = lambda: datetime.now(UTC) + timedelta(minutes=4)
                assert await place.swept() == [{"kind": "sandbox", "id": given_up, "why": "dead"}]
                assert pids("given-up") == set()

    run(scenario())
