"""The sweep: what could not be taken down is tried again, until nothing of it is left. Whoever waits for that is told how it goes."""

from __future__ import annotations

import asyncio

import structlog

from agents.node import LocalNode
from agents.records import SandboxRecord
from agents.teardown import LeftError, take_down
from domain.nodes.orders import Failure, Order, ProvisionFailed, ReportKind, SandboxStopped, Verb

log = structlog.get_logger(__name__)


async def sweeping(node: LocalNode) -> None:
    """Sweep now and then, for ever."""
    while True:
        await sweep(node)
        await asyncio.sleep(node.settings.sweep_s)


async def sweep(node: LocalNode) -> None:
    """Try every doomed sandbox once. One that an order is tearing down right now is left to that order."""
    for record in [record for record in node.memory.sandboxes.values() if record.condition == "doomed"]:
        if record.id in node.dooms:
            continue
        try:
            await take_down(node, record.id, for_ever=record.owed is not None and record.owed.verb is Verb.SANDBOX_DESTROY)
        except LeftError as error:
            log.warning("sweep.failed", sandbox=record.id, left=error.left, error=error.failure.message)
            _tell_left(node, record, error)
            continue
        except Exception as error:  # noqa: BLE001 - the next one, and the next time
            log.warning("sweep.failed", sandbox=record.id, error=repr(error)[:500])
            continue
        node.swept.pop(record.id, None)
        if record.owed is not None:
            await _tell_gone(node, record, record.owed)


def _tell_left(node: LocalNode, record: SandboxRecord, error: LeftError) -> None:
    """One more failed undo: what is left, and why. Told ever more rarely, since every one of these is kept for ever."""
    tries = node.swept[record.id] = node.swept.get(record.id, 0) + 1
    if record.owed is None or tries & (tries - 1):
        return
    body = ProvisionFailed(uncompensated=error.left, undo=tries).model_dump(mode="json")
    suffix = f":undo-{node.clock().timestamp():.6f}"
    node.reporter.later(node.reporter.of(record.owed, ReportKind.FAILED, body, error.failure, suffix))


async def _tell_gone(node: LocalNode, record: SandboxRecord, owed: Order) -> None:
    """The end of the order that had failed at this."""
    if owed.verb is Verb.SANDBOX_DESTROY:
        stopped = SandboxStopped(exit_code=record.exit_code, exited_at=record.exited_at or node.clock())
        await node.reporter.end(owed, node.reporter.of(owed, ReportKind.DONE, stopped.model_dump(mode="json")))
    elif owed.verb is Verb.SANDBOX_PROVISION:
        failure = Failure(code="sandbox.startup-failed", message="what had been left behind is undone")
        body = ProvisionFailed(undo=1).model_dump(mode="json")
        await node.reporter.end(owed, node.reporter.of(owed, ReportKind.FAILED, body, failure, ":late"))
