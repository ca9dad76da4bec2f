"""Carrying orders out: each at most once, at least to its end, and answered by exactly one final report.

An order is written down before anything is done for it; its end is written down with its report; the lane forgets it when the bus has
stored that report. So whatever dies in between, either the order is still on the lane, or its report is still in the outbox, or both.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Coroutine
from typing import Any, Final, Protocol

import structlog
from pydantic import ValidationError

from agents.account import OrderAccount
from agents.cutting import CUTTABLE
from agents.failures import FailedError, fail, failure_of
from agents.fence import FencedError
from agents.keyed import KeyedLocks
from agents.node import LocalNode
from agents.records import Trail, order_entry
from agents.steps import IncompatibleError
from agents.task import Task
from agents.verbs import cancel, commits, disks, execute, images, inspect, limits, power, provision, replicas, restart, snapshots, sweep
from agents.watching import ensure_watched
from bus.tracing import Tracing
from domain.kernel.aggregate import Record
from domain.nodes.orders import BODIES, Failure, Order, Report, ReportKind, Steps, Verb

log = structlog.get_logger(__name__)

Perform = Callable[[Task, Any], Coroutine[Any, Any, Record | None]]

VERBS: Final[dict[Verb, Perform]] = {
    Verb.IMAGE_RESOLVE: images.resolve,
    Verb.ARTIFACT_BUILD: images.build,
    Verb.ARTIFACT_REMOVE: replicas.remove_artifact,
    Verb.REPLICA_DISTRIBUTE: replicas.distribute,
    Verb.REPLICA_PREPARE: replicas.prepare,
    Verb.REPLICA_REMOVE: replicas.remove,
    Verb.SANDBOX_PROVISION: provision.provision,
    Verb.SANDBOX_PAUSE: power.pause,
    Verb.SANDBOX_RESUME: power.resume,
    Verb.SANDBOX_LIMITS: limits.change,
    Verb.SANDBOX_STOP: power.stop,
    Verb.SANDBOX_DESTROY: provision.destroy,
    Verb.SANDBOX_EXEC: execute.execute,
    Verb.SANDBOX_SNAPSHOT: snapshots.snapshot,
    Verb.SANDBOX_ROLLBACK: snapshots.rollback,
    Verb.SANDBOX_COMMIT: commits.commit,
    Verb.SANDBOX_RESTART: restart.restart,
    Verb.SNAPSHOT_REMOVE: snapshots.remove,
    Verb.SNAPSHOT_EXPORT: snapshots.export,
    Verb.DISK_PROVISION: disks.provision,
    Verb.DISK_GROW: disks.grow,
    Verb.DISK_SNAPSHOT: disks.snapshot,
    Verb.DISK_SNAPSHOT_REMOVE: disks.remove_snapshot,
    Verb.DISK_REMOVE: disks.remove,
    Verb.NODE_INSPECT: inspect.inspect,
    Verb.NODE_LIST: sweep.list_,
    Verb.NODE_SWEEP: sweep.sweep,
    Verb.ORDER_CANCEL: cancel.cancel,
}
CLEARING: Final = frozenset(
    {
        *(Verb.SANDBOX_STOP, Verb.SANDBOX_DESTROY, Verb.REPLICA_REMOVE, Verb.ARTIFACT_REMOVE, Verb.SNAPSHOT_REMOVE),
        *(Verb.DISK_REMOVE, Verb.DISK_SNAPSHOT_REMOVE, Verb.NODE_INSPECT, Verb.ORDER_CANCEL),
    }
)
"""Done however late: what is to go has to go."""
REPEATABLE: Final = frozenset({Verb.SANDBOX_DESTROY, Verb.SNAPSHOT_REMOVE, Verb.DISK_REMOVE, Verb.NODE_INSPECT, Verb.NODE_LIST})
"""Done again when they come again: their ids are never used for anything else, and the second time finds nothing."""
MAX_BEGUN: Final = 3
"""An order that was begun this often by agents that died is taken for the reason why they died."""
_ANSWERED_AGAIN: Final = frozenset({Verb.SANDBOX_EXEC})
"""Whoever repeats one of these waits for the answer, which the bus must not take for the one that it has stored already."""
_FROM_THE_LANE: Final = frozenset({Verb.IMAGE_RESOLVE, Verb.ARTIFACT_BUILD, Verb.ORDER_CANCEL})
"""Never carried out from the journal, which does not keep their credentials: the lane still has them, and what cancels them after them."""
_ENDS_WITH_THE_MACHINE: Final = frozenset({Verb.SANDBOX_PROVISION})
"""Need not wait for the disk: no effect of theirs outlives a power cut, after which the lane still has the order."""
_HIDDEN: Final = frozenset({"stdin", "env", "registry_user", "registry_secret"})


class Ack(Protocol):
    """The part of the lane's message that work needs."""

    async def term(self, reason: str) -> None: ...


class Work:
    """The node's work. ``handle`` is given to the lane; ``resume`` takes up what an earlier process began."""

    def __init__(self, node: LocalNode, tracing: Tracing | None = None) -> None:
        self._node = node
        self._tracing = tracing
        self._keys = KeyedLocks()
        self._running: dict[str, asyncio.Task[Report | None]] = {}

    # ------------------------------------------------------------------------------------------------------------- lane

    def arrived(self, order: Order) -> None:
        """An order was received; its turn may come much later. A destroy, or a cancellation, cuts what is in progress short at once."""
        if order.verb is Verb.SANDBOX_DESTROY and isinstance(order.body.get("sandbox_id"), str):
            self._node.doom(order.body["sandbox_id"], order)
        if order.id not in self._node.memory.ended:
            self._node.cuts.opened(order)
            if order.verb is Verb.ORDER_CANCEL:
                self._node.cuts.cut(order)

    async def handle(self, order: Order, ack: Ack) -> None:
        """Carry it out, or find that it was; returns when its final report is stored on the bus."""
        report = await self._once(order)
        if report is not None and report.error is not None and report.error.code in {"order.invalid", "order.poisoned"}:
            await ack.term(f"{order.id}: {report.error.code}: {report.error.message}")

    async def _once(self, order: Order) -> Report | None:
        memory = self._node.memory
        running = self._running.get(order.id)
        if running is not None:
            return await asyncio.shield(running)
        if order.id in memory.ended and order.verb not in REPEATABLE:
            report = memory.answers.get(order.id)
            if order.verb in _ANSWERED_AGAIN:
                report = self._anew(order, report)
            elif report is None and order.verb is Verb.SANDBOX_PROVISION:
                report = self._still_runs(order)
            if report is not None:
                await self._node.reporter.again(report)
            return report
        return await asyncio.shield(self._begin(order))

    def _anew(self, order: Order, report: Report | None) -> Report:
        """The answer to an order that came again, as a report of its own; what is not kept any more is said to be lost."""
        if report is None:
            report = self._failed(order, fail("sandbox.exec-interrupted", "it ran before, and what it said is not kept any more"))
        return self._renamed(report)

    def _still_runs(self, order: Order) -> Report | None:
        """The answer to a creation whose own is not kept any more, so that whoever still asks learns what runs (miren-sandbox.md §3.2)."""
        record = self._node.find(order.process_id)
        if record is None or record.condition not in {"running", "paused"}:
            return None
        body = provision.running(record).model_dump(mode="json")
        return self._renamed(self._node.reporter.of(order, ReportKind.DONE, body))

    def _renamed(self, report: Report) -> Report:
        return report.model_copy(update={"id": f"{report.id}:again-{self._node.clock().timestamp():.6f}"})

    def _begin(self, order: Order) -> asyncio.Task[Report | None]:
        task = asyncio.create_task(
            self._traced(order) if self._tracing is not None else self._carry_out(order), name=f"{order.verb} {order.id}"
        )
        self._running[order.id] = task
        task.add_done_callback(lambda done: self._forget(order, done))
        return task

    def _forget(self, order: Order, done: asyncio.Task[Report | None]) -> None:
        del self._running[order.id]
        if not done.cancelled() and done.exception() is not None:
            log.error("order.not-ended", order=order.id, verb=order.verb, error=repr(done.exception())[:500])

    def resume(self) -> None:
        """Take up every order that was begun and not ended. Those of one key keep their order."""
        for trail in list(self._node.memory.orders.values()):
            if trail.order.verb not in _FROM_THE_LANE:
                self.arrived(trail.order)
                self._begin(trail.order)

    async def close(self, seconds: float) -> None:
        """Let what is in progress come to its end for ``seconds``; what does not is taken up by the next process."""
        if self._running:
            await asyncio.wait(set(self._running.values()), timeout=seconds)
        left = dict(self._running)
        for identifier, task in left.items():
            task.cancel()
            if identifier in self._node.memory.orders:  # this end is no sign of anything being wrong with the order
                self._node.journal.write({"k": "begun", "id": identifier, "n": 0})
        await asyncio.gather(*left.values(), return_exceptions=True)

    # ------------------------------------------------------------------------------------------------------------ orders

    async def _traced(self, order: Order) -> Report | None:
        """The same, in a span of the trace that the order belongs to; its reports are below that."""
        if self._tracing is None or order.trace is None:
            return await self._carry_out(order)
        with self._tracing.span(f"order {order.verb}", order.trace, node=self._node.name, order=order.id) as trace:
            return await self._carry_out(order.model_copy(update={"trace": trace}))

    async def _carry_out(self, order: Order) -> Report | None:
        if order.verb is Verb.SANDBOX_EXEC:  # holds nobody back
            return await self._to_its_end(order)
        async with self._keys(order.key):
            return await self._to_its_end(order)

    async def _to_its_end(self, order: Order) -> Report | None:
        node, task = self._node, None
        repeated = order.id in node.memory.ended
        try:
            task = await self._accept(order)
            body = BODIES[order.verb].model_validate(order.body)
            node.crash.here(f"{order.verb}:before")
            result = await self._perform(task, body)
            node.crash.here(f"{order.verb}:after")
            report = node.reporter.of(order, ReportKind.DONE, {} if result is None else result.model_dump(mode="json"))
        except ValidationError as error:
            faults = error.errors(include_input=False, include_url=False)
            failed = fail("order.invalid", f"{order.verb}: {error.error_count()} faults, first: {faults[0]['loc']}: {faults[0]['msg']}")
            report = self._failed(order, failed)
        except IncompatibleError as error:
            await self._left_alone(order, task, error)
            return None
        except Exception as error:  # noqa: BLE001 - whatever it is, somebody waits for the answer
            report = self._failed(order, error)
            if task is None and order.verb in _ANSWERED_AGAIN and report.error is not None and report.error.retryable:
                return await self._not_begun(order, report, report.error)
        finally:
            if task is not None:
                await task.account.close()
        node.cuts.ended(order)
        if order.verb is Verb.SANDBOX_DESTROY:
            node.spare(order.body.get("sandbox_id", ""), order)
        lasting = order.verb not in _ENDS_WITH_THE_MACHINE
        await node.reporter.end(order, self._renamed(report) if repeated else report, lasting=lasting)
        ensure_watched(node, str(order.body.get("sandbox_id", "")))
        return report

    async def _not_begun(self, order: Order, report: Report, why: Failure) -> Report:
        """Nothing was done, and nothing is remembered: when the very same order comes again, it may be possible."""
        self._node.cuts.ended(order)
        said = report.model_copy(update={"error": why.model_copy(update={"details": {**why.details, "begun": False}})})
        await self._node.reporter.again(self._renamed(said))
        return said

    async def _perform(self, task: Task, body: Any) -> Record | None:
        """Do it. Raises ``order.cancelled`` for one that is cut off, when nothing of it is left."""
        order = task.order
        if order.verb not in CUTTABLE:
            return await VERBS[order.verb](task, body)
        cut = self._node.cuts.opened(order)
        try:
            if order.verb is Verb.REPLICA_PREPARE and not cut.closed:  # its boot has a fence of its own, behind which it is undone
                return await VERBS[order.verb](task, body)
            return await cut.guard(VERBS[order.verb](task, body))
        except (FencedError, FailedError) as error:
            if not cut.closed:
                raise
            raise fail("order.cancelled", "its job was cancelled") from error

    async def _left_alone(self, order: Order, task: Task | None, error: IncompatibleError) -> None:
        """Neither done nor undone. It stays written down for a program that knows it, which has all its tries; a destroy ends it too."""
        node = self._node
        log.error("order.incompatible", order=order.id, verb=order.verb, error=str(error))
        node.journal.write({"k": "begun", "id": order.id, "n": 0})
        node.cuts.ended(order)
        if task is not None and order.verb is Verb.SANDBOX_PROVISION:
            failure = Failure(code="order.incompatible", message=str(error), details={"steps": list(task.account.touched)})
            body, suffix = task.account.rest().model_dump(mode="json"), f":incompatible-{node.clock().timestamp():.6f}"
            await node.reporter.steps(node.reporter.of(order, ReportKind.STEP, body, failure, suffix))

    def _failed(self, order: Order, error: Exception) -> Report:
        failure = failure_of(error)
        log.info("order.failed", order=order.id, verb=order.verb, code=failure.code, error=failure.message)
        return self._node.reporter.of(order, ReportKind.FAILED, error.body if isinstance(error, FailedError) else {}, failure)

    async def _accept(self, order: Order) -> Task:
        """Write it down, unless it is already. Raises what speaks against beginning it."""
        node, known = self._node, self._node.memory.orders.get(order.id)
        if known is None:
            if order.deadline is not None and node.clock() > order.deadline and order.verb not in CLEARING:
                raise fail("order.deadline-exceeded", f"it arrived after its deadline {order.deadline.isoformat()}", retryable=True)
            node.journal.room()
            node.journal.write(order_entry(_for_the_journal(order), node.clock()))
            if order.verb not in _ENDS_WITH_THE_MACHINE:
                await node.journal.sync()
        trail = node.memory.orders[order.id]
        node.journal.write({"k": "begun", "id": order.id, "n": trail.begun + 1})
        account = OrderAccount(trail, node.journal, node.clock, self._teller(order))
        if trail.begun > MAX_BEGUN:
            _give_up(trail, account)
        return Task(node, order, trail, account)

    def _teller(self, order: Order) -> Callable[[Steps], Awaitable[None]] | None:
        """Only those who wait for a provisioning are told of its steps."""
        if order.verb is not Verb.SANDBOX_PROVISION:
            return None

        async def tell(steps: Steps) -> None:
            suffix = f":{steps.first}-{steps.first + len(steps.steps)}"
            await self._node.reporter.steps(self._node.reporter.of(order, ReportKind.STEP, steps.model_dump(mode="json"), suffix=suffix))

        return tell


def _give_up(trail: Trail, account: OrderAccount) -> None:
    """It seems to kill its agent. What it did is undone, unless that kills the agent too; then the sweep does it, later and alone."""
    error = fail("order.poisoned", f"begun {trail.begun - 1} times and never ended; it seems to kill its agent")
    if not trail.touched or trail.order.verb is Verb.SANDBOX_EXEC or trail.begun > 2 * MAX_BEGUN:
        raise error
    if account.failure is None:
        account.failed(trail.touched[-1], error.failure, told=False)


def _for_the_journal(order: Order) -> Order:
    """Without credentials and input, where nothing is ever carried out from the journal."""
    if order.verb is not Verb.SANDBOX_EXEC and order.verb not in _FROM_THE_LANE:
        return order
    return order.model_copy(update={"body": {key: value for key, value in order.body.items() if key not in _HIDDEN}})
