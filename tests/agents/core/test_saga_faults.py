"""Whatever goes wrong at whichever step of a real saga: in the end the sandbox runs, or the host is exactly as it was before."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import pytest
from support.leftovers import Traces
from support.local_node import SNAPSHOT
from support.real_node import RealRig
from support.sabotage import Died, Sabotage, deaths, deaths_undoing, failures, said
from support.waiting import eventually

from agents.provisioning import CREATE_SANDBOX
from agents.verbs import provision, snapshots
from agents.verbs.snapshots import ROLLBACK_SANDBOX
from domain.nodes.orders import Report, ReportKind, Verb


@pytest.fixture
def wrong(monkeypatch) -> Sabotage:
    """What goes wrong in both sagas of this program."""
    sabotage = Sabotage()
    monkeypatch.setattr(provision, "CREATE_SANDBOX", sabotage.of(CREATE_SANDBOX))
    monkeypatch.setattr(snapshots, "ROLLBACK_SANDBOX", sabotage.of(ROLLBACK_SANDBOX))
    return sabotage


@asynccontextmanager
async def living(real: RealRig) -> AsyncIterator[Traces]:
    """One agent process after another has its turn in here. Gives what the host has of a node without sandboxes."""
    try:
        async with real.life() as node:
            await node.network.setup()
            await real.destroy(await real.up("first"))
            before = real.traces()
        yield before
    finally:
        await real.purged()


async def unchanged(real: RealRig, before: Traces) -> None:
    """Nothing of any sandbox is left."""
    assert await real.left() == {}
    assert real.states() == set()
    await eventually(lambda: not real.traces().beyond(before))


async def created(real: RealRig, name: str, **recipe) -> Report:
    return await real.tell(Verb.SANDBOX_PROVISION, real.provision(name, **recipe))


def test_a_creation_that_fails_anywhere_leaves_the_host_as_it_was(real, wrong, run):
    """Every action and every undo runs twice."""

    async def scenario():
        async with living(real) as before, real.life():
            for point in failures(CREATE_SANDBOX):
                with said(point):
                    wrong.fails, wrong.times = point, 2
                    failed = await created(real, point.replace(":", "-"))
                    assert (failed.kind, failed.error.message, failed.body["uncompensated"]) == (ReportKind.FAILED, point, [])
                    await unchanged(real, before)

    run(scenario())


def test_a_creation_whose_every_action_runs_twice_is_one_sandbox(real, wrong, run):
    async def scenario():
        async with living(real) as before, real.life():
            wrong.times = 2
            assert (await created(real, "two")).kind is ReportKind.DONE
            assert await real.answers(real.sandbox("two"))
            assert {len(names) for names in (await real.left()).values()} == {1}
            await real.destroy(real.sandbox("two"))
            await unchanged(real, before)

    run(scenario())


async def dies(real: RealRig, wrong: Sabotage, point: str, name: str, **recipe) -> None:
    """An agent process that ends at this point of a creation."""
    async with real.life(orderly=False, resume=False) as node:
        wrong.may_die(node)
        wrong.dies = point
        with pytest.raises(Died):
            await created(real, name, **recipe)


def test_an_agent_that_dies_anywhere_in_a_creation_is_followed_by_one_that_ends_it(real, wrong, run):
    """Nothing is done twice but what was interrupted."""

    async def scenario():
        async with living(real) as before:
            for point in deaths(CREATE_SANDBOX):
                with said(point):
                    wrong.ran.clear()
                    await dies(real, wrong, point, point.replace(":", "-"))
                    async with real.life():
                        sandbox = real.sandbox(point.replace(":", "-"))
                        await eventually(lambda known=sandbox: real.node.get(known).condition == "running")
                        assert await real.answers(sandbox)
                        interrupted = [point.partition(":")[0]] if point.endswith("after") else []
                        assert sorted(wrong.ran) == sorted([*CREATE_SANDBOX.steps, *interrupted])
                        await real.destroy(sandbox)
                        await unchanged(real, before)

    run(scenario())


def test_an_agent_that_dies_anywhere_while_it_undoes_is_followed_by_one_that_ends_that(real, wrong, run):
    async def scenario():
        async with living(real) as before:
            for point in deaths_undoing(CREATE_SANDBOX):
                with said(point):
                    wrong.fails = "ready:before"
                    await dies(real, wrong, point, point.replace(":", "-"))
                    wrong.fails = ""
                    async with real.life():
                        await eventually(lambda: not real.node.memory.orders)
                        await unchanged(real, before)

    run(scenario())


def test_a_rollback_that_fails_anywhere_is_said_to_be_fatal_and_leaves_what_can_be_destroyed(real, wrong, run):
    async def scenario():
        async with living(real) as before, real.life():
            for point in failures(ROLLBACK_SANDBOX):
                with said(point):
                    wrong.fails, wrong.times = "", 1
                    sandbox = await snapshotted(real, point.replace(":", "-"))
                    wrong.fails, wrong.times = point, 2
                    failed = await rolled_back(real, sandbox)
                    assert (failed.kind, failed.error.message, failed.body) == (ReportKind.FAILED, point, {"fatal": True})
                    await gone(real, sandbox)
                    await unchanged(real, before)

    run(scenario())


def test_an_agent_that_dies_anywhere_in_a_rollback_is_followed_by_one_that_ends_it(real, wrong, run):
    async def scenario():
        async with living(real) as before:
            for point in deaths(ROLLBACK_SANDBOX):
                with said(point):
                    async with real.life(orderly=False, resume=False) as node:
                        sandbox = await snapshotted(real, point.replace(":", "-"))
                        wrong.may_die(node)
                        wrong.dies = point
                        with pytest.raises(Died):
                            await rolled_back(real, sandbox)
                    async with real.life():
                        await eventually(lambda known=sandbox: real.node.get(known).condition == "running")
                        assert real.node.get(sandbox).generation == 1
                        assert await real.answers(sandbox)
                        await gone(real, sandbox)
                        await unchanged(real, before)

    run(scenario())


async def snapshotted(real: RealRig, name: str) -> str:
    """A sandbox that runs, with a snapshot of it."""
    sandbox = await real.up(name)
    taken = await real.tell(Verb.SANDBOX_SNAPSHOT, {"sandbox_id": sandbox, "snapshot_id": SNAPSHOT})
    assert taken.kind is ReportKind.DONE, taken.error
    return sandbox


async def rolled_back(real: RealRig, sandbox: str) -> Report:
    return await real.tell(Verb.SANDBOX_ROLLBACK, {"sandbox_id": sandbox, "snapshot_id": SNAPSHOT, "generation": 1})


async def gone(real: RealRig, sandbox: str) -> None:
    """It and its snapshot are removed."""
    await real.destroy(sandbox)
    assert (await real.tell(Verb.SNAPSHOT_REMOVE, {"snapshot_id": SNAPSHOT})).kind is ReportKind.DONE
