"""The saga kit: whatever fails, and wherever the process dies, in the end all of it is there or none."""

from __future__ import annotations

import asyncio
from datetime import UTC, datetime, timedelta

import pytest

from agents.account import OrderAccount
from agents.drivers.driver import RuntimeFault
from agents.fence import Fence
from agents.journal import Journal
from agents.records import Memory, order_entry
from agents.steps import Step, UnwoundError
from agents.steps import run as run_saga
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

    def steps(self):
        return tuple(Step(name, self._do(name), self._undo(name)) for name in NAMES)

    def _do(self, name):
        async def do(_):
            self.sabotage(f"{name}:before-effect")
            self.things.add(name)
            self.done.append(name)
            self.sabotage(f"{name}:reply-lost")
            return {"made": name}

        return do

    def _undo(self, name):
        async def undo(_):
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


async def go(path, world, *, fence=None, crash=lambda _point: None, deadline=None, now=lambda: NOW):
    journal, account = account_of(path)
    try:
        await run_saga(world.steps(), None, account, fence=fence or Fence(), deadline=deadline, now=now, crash=crash)
    finally:
        journal.close()
    return account


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

    async def hang(_):
        world.things.add("boot")
        began.set()
        await asyncio.Event().wait()

    steps = [*world.steps()]
    steps[2] = Step("boot", hang, steps[2].undo)

    async def scenario():
        journal, account = account_of(path)
        saga = asyncio.ensure_future(run_saga(steps, None, account, fence=fence, now=lambda: NOW))
        await began.wait()
        fence.close()
        with pytest.raises(UnwoundError) as caught:
            await saga
        assert caught.value.failure.code == "sandbox.superseded"
        assert world.things == set()
        assert [step.state for step in journal.state.orders["o1"].steps if step.step == "boot"] == [
            StepState.STARTED, StepState.FAILED, StepState.UNDONE,
        ]  # fmt: skip
        journal.close()

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

    async def hang(_):
        began.set()
        await asyncio.Event().wait()

    steps = [*world.steps()]
    steps[2] = Step("boot", hang, steps[2].undo)

    async def scenario():
        journal, account = account_of(path)
        saga = asyncio.ensure_future(run_saga(steps, None, account, fence=Fence(), now=lambda: NOW))
        await began.wait()
        saga.cancel()
        await asyncio.gather(saga, return_exceptions=True)
        assert journal.state.orders["o1"].failure is None
        journal.close()
        await go(path, world)

    run(scenario())
    assert world.things == set(NAMES)
    assert world.done == list(NAMES)


def test_a_resumed_saga_has_the_deadline_of_the_first(path, run):
    """A step that hangs is given up at the order's instant, however often the process was restarted."""
    world = World()

    async def hang(_):
        await asyncio.Event().wait()

    steps = [*world.steps()]
    steps[3] = Step("probe", hang, steps[3].undo)

    async def scenario():
        journal, account = account_of(path)
        with pytest.raises(UnwoundError) as caught:
            await run_saga(steps, None, account, fence=Fence(), deadline=NOW, now=lambda: NOW + timedelta(seconds=1))
        assert caught.value.failure.code == "order.deadline-exceeded"
        journal.close()

    run(scenario())
    assert world.things == set()
