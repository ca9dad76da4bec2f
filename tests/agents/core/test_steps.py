"""The saga kit: whatever fails, and wherever the process dies, in the end all of it is there or none."""

from __future__ import annotations

import asyncio
from dataclasses import replace
from datetime import UTC, datetime, timedelta

import pytest

from agents.account import OrderAccount
from agents.drivers.driver import RuntimeFault
from agents.fence import Fence
from agents.journal import Journal
from agents.records import Memory, order_entry
from agents.steps import Execution, IncompatibleError, UnwoundError
from agents.steps import run as run_saga
from domain.kernel.saga import Action, Definition, Nothing, define
from domain.nodes.orders import Order, StepState, Verb

pytestmark = pytest.mark.quick

NAMES = ("lease", "root", "boot", "probe")
NOW = datetime(2026, 1, 1, tzinfo=UTC)


class Crash(BaseException):
    """The process dies here."""


class World:
    """What the steps have effects on. ``sabotage`` raises at a point of a step: before its effect, or after it."""

    def __init__(self, sabotage=lambda _point: None, undo_times=1):
        self.things: set[str] = set()
        self.done: list[str] = []
        self.sabotage = sabotage
        self.undo_times = undo_times

    def saga(self, version=1, **instead) -> Definition[None]:
        """A saga of these steps. ``instead``: what some of them do."""
        actions = (Action(name, Nothing, Nothing, instead.get(name) or self._do(name), self._undo(name)) for name in NAMES)
        return define("test", version, Nothing, *actions)

    def _do(self, name):
        async def do(*_):
            self.sabotage(f"{name}:before-effect")
            self.things.add(name)
            self.done.append(name)
            self.sabotage(f"{name}:reply-lost")
            return Nothing()

        return do

    def _undo(self, name):
        async def undo(*_):
            for _ in range(self.undo_times):
                self.sabotage(f"undo-{name}")
                self.things.discard(name)

        return undo


@pytest.fixture
def path(tmp_path):
    return tmp_path / "journal"


def order(deadline=None) -> Order:
    process = {"process": "provisioning", "process_id": "s"}
    return Order(id="o1", verb=Verb.SANDBOX_PROVISION, project="p", key="k", at=NOW, deadline=deadline, body={}, **process)


def account_of(path, deadline=None):
    """What a new process finds in the journal, or writes there first."""
    journal = Journal.open(path, Memory())
    if "o1" not in journal.state.orders:
        journal.write(order_entry(order(deadline), NOW))
    return journal, OrderAccount(journal.state.orders["o1"], journal, lambda: NOW)


async def go(path, world, *, saga=None, fence=None, crash=lambda _point: None, deadline=None, now=lambda: NOW):
    journal, account = account_of(path)
    try:
        await run_saga(Execution(saga or world.saga(), None, Nothing(), account, fence or Fence(), now, deadline, crash))
    finally:
        journal.close()
    return account


def steps_of(path):
    """What the journal says was done."""
    journal, _ = account_of(path)
    journal.close()
    return journal.state.orders["o1"].steps


def raising(point, error):
    def sabotage(here):
        if here == point:
            raise error

    return sabotage


def test_steps_run_in_order_and_outputs_are_on_record(path, run):
    world = World()
    account = run(go(path, world))
    assert world.done == list(NAMES)
    assert list(account.outputs) == list(NAMES)


@pytest.mark.parametrize("effect", ["before-effect", "reply-lost"])
@pytest.mark.parametrize("name", NAMES)
def test_a_failure_at_any_step_leaves_nothing_behind(path, run, name, effect):
    world = World(raising(f"{name}:{effect}", RuntimeFault("test.fault", "told to fail")), undo_times=2)
    with pytest.raises(UnwoundError) as caught:
        run(go(path, world))
    assert world.things == set()
    assert (caught.value.failure.code, caught.value.left) == ("test.fault", ())


@pytest.mark.parametrize("place", ["before", "after"])
@pytest.mark.parametrize("name", NAMES)
def test_a_crash_at_any_step_is_gone_on_from(path, run, name, place):
    world = World()
    with pytest.raises(Crash):
        run(go(path, world, crash=raising(f"{name}:{place}", Crash())))
    before = list(world.done)
    run(go(path, world))
    assert world.things == set(NAMES)
    repeated = {step for step in world.done if world.done.count(step) > 1}
    assert repeated <= {name}, "only the interrupted step runs again"
    assert world.done[: len(before)] == before


@pytest.mark.parametrize("undone", [f"undo-{name}:{place}" for name in NAMES[:3] for place in ("before", "after")])
def test_a_crash_while_undoing_is_undone_further_and_never_forward(path, run, undone):
    world = World(raising("boot:reply-lost", RuntimeFault("test.fault", "told to fail")))
    with pytest.raises(Crash):
        run(go(path, world, crash=raising(undone, Crash())))
    world.sabotage = lambda _point: None
    done = list(world.done)
    with pytest.raises(UnwoundError):
        run(go(path, world))
    assert world.things == set()
    assert world.done == done


def test_undoing_stops_at_the_first_undo_that_fails_and_says_what_is_left(path, run):
    def sabotage(point):
        if point in {"probe:reply-lost", "undo-root"}:
            raise RuntimeFault("test.fault", point)

    world = World(sabotage)
    with pytest.raises(UnwoundError) as caught:
        run(go(path, world))
    assert caught.value.left == ("lease", "root")
    assert world.things == {"lease", "root"}, "the lease may be what the root still uses"
    world.sabotage = lambda _point: None
    with pytest.raises(UnwoundError) as again:
        run(go(path, world))
    assert again.value.left == ()
    assert world.things == set()
    assert again.value.failure.message == "probe:reply-lost", "the first failure is the reason"


def test_a_fence_cancels_the_running_step_and_undoes(path, run):
    world, fence, began = World(), Fence(), asyncio.Event()

    async def hang(*_):
        world.things.add("boot")
        began.set()
        await asyncio.Event().wait()

    async def scenario():
        saga = asyncio.ensure_future(go(path, world, saga=world.saga(boot=hang), fence=fence))
        await began.wait()
        fence.close()
        with pytest.raises(UnwoundError) as caught:
            await saga
        assert caught.value.failure.code == "sandbox.superseded"
        assert world.things == set()
        assert [step.state for step in steps_of(path) if step.step == "boot"] == [StepState.STARTED, StepState.FAILED, StepState.UNDONE]

    run(scenario())


def test_a_closed_fence_lets_no_step_begin(path, run):
    world, fence = World(), Fence()
    fence.close()
    with pytest.raises(UnwoundError):
        run(go(path, world, fence=fence))
    assert world.done == []


def test_ending_the_process_is_no_failure(path, run):
    """Cancelling the saga itself undoes nothing; the next process goes on."""
    world, began = World(), asyncio.Event()

    async def hang(*_):
        began.set()
        await asyncio.Event().wait()

    async def scenario():
        saga = asyncio.ensure_future(go(path, world, saga=world.saga(boot=hang)))
        await began.wait()
        saga.cancel()
        await asyncio.gather(saga, return_exceptions=True)
        assert [step.state for step in steps_of(path)][-1] is StepState.STARTED
        await go(path, world)

    run(scenario())
    assert world.things == set(NAMES)
    assert world.done == list(NAMES)


def test_a_resumed_saga_has_the_deadline_of_the_first(path, run):
    """A step that hangs is given up at the order's instant, however often the process was restarted."""
    world = World()

    async def hang(*_):
        await asyncio.Event().wait()

    with pytest.raises(UnwoundError) as caught:
        run(go(path, world, saga=world.saga(probe=hang), deadline=NOW, now=lambda: NOW + timedelta(seconds=1)))
    assert caught.value.failure.code == "order.deadline-exceeded"
    assert world.things == set()


def test_a_step_that_cannot_be_written_down_is_undone(path, run):
    """What is not on record was not done (reference/miren-sandbox.md §11.9)."""
    world = World()

    async def scenario():
        journal, account = account_of(path)
        write = journal.write

        def fails_once(*entries):
            if entries[-1].get("step", {}).get("state") == "done" and "boot" in world.done:
                journal.write = write
                raise RuntimeFault("node.disk-full", "told to fail")
            write(*entries)

        journal.write = fails_once
        with pytest.raises(UnwoundError) as caught:
            await run_saga(Execution(world.saga(), None, Nothing(), account, Fence(), lambda: NOW))
        journal.close()
        assert (caught.value.failure.code, caught.value.left) == ("node.disk-full", ())

    run(scenario())
    assert (world.done, world.things) == (["lease", "root", "boot"], set())


def test_a_fence_that_closes_during_the_last_step_beats_its_success(path, run):
    """Nobody is told that something runs which is to go: it ends as superseded (reference/miren-sandbox.md §2.4b.6)."""
    fence = Fence()
    world = World(lambda point: fence.close() if point == "probe:reply-lost" else None)
    with pytest.raises(UnwoundError) as caught:
        run(go(path, world, fence=fence))
    assert caught.value.failure.code == "sandbox.superseded"
    assert world.things == set()


@pytest.mark.parametrize("undoing", [False, True], ids=["forward", "undoing"])
def test_what_another_version_began_is_neither_done_nor_undone(path, run, undoing):
    """reference/miren-sandbox.md §11.30."""
    world = World(raising("boot:reply-lost", RuntimeFault("test.fault", "told to fail")) if undoing else lambda _point: None)
    with pytest.raises(Crash):
        run(go(path, world, crash=raising("undo-root:before" if undoing else "boot:before", Crash())))
    things, steps = set(world.things), steps_of(path)
    with pytest.raises(IncompatibleError, match="unfinished test/1; this program has test/2"):
        run(go(path, world, saga=world.saga(2)))
    assert (world.things, steps_of(path)) == (things, steps)


def test_a_version_that_can_goes_on_with_an_older_one(path, run):
    world = World()
    with pytest.raises(Crash):
        run(go(path, world, crash=raising("boot:before", Crash())))
    run(go(path, world, saga=replace(world.saga(2), resumes=frozenset({1}))))
    assert world.done == list(NAMES)


def test_what_began_before_versions_were_written_down_is_of_the_first(path, run):
    world = World()
    journal, account = account_of(path)
    account.started("lease")
    journal.close()
    with pytest.raises(IncompatibleError):
        run(go(path, world, saga=world.saga(2)))
    run(go(path, world))
    assert world.done == list(NAMES)
