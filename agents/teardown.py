"""Taking a sandbox down to nothing: process, then what it had mounted, then network, then root. Every part bears that nothing is there.

The address is released only when what used it is gone, the root when nothing can write to it any more (reference/miren-sandbox.md §3.5).
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Iterator
from typing import Any, Final

import structlog

from agents.drivers.driver import Driver, Exit, Handle, RuntimeFault
from agents.failures import FailedError, failure_of
from agents.node import LocalNode
from agents.provisioning import remove_tree
from agents.records import SandboxRecord
from agents.watching import unwatch
from domain.nodes.orders import ProvisionFailed

log = structlog.get_logger(__name__)

_PROCESS_MAY_LIVE: Final = frozenset({"starting", "running", "paused", "replacing", "doomed"})


_PARTS: Final = ("start", "disks", "network", "root", "logs")
"""What is taken down, in this order, under the names of the steps that made it (``agents/provisioning.py``)."""


class LeftError(FailedError):
    """Something of a sandbox could not be taken down. ``left``: the steps that are not undone, the one that failed first."""

    def __init__(self, step: str, cause: Exception) -> None:
        self.left = _PARTS[_PARTS.index(step) :]
        failure = failure_of(cause)
        failure = failure.model_copy(update={"details": {**failure.details, "step": step}})
        super().__init__(failure, ProvisionFailed(uncompensated=self.left).model_dump(mode="json"))


@contextlib.contextmanager
def _part(step: str) -> Iterator[None]:
    try:
        yield
    except Exception as error:
        raise LeftError(step, error) from error


async def take_down(
    node: LocalNode, sandbox_id: str, grace_s: float = 0, hurry: asyncio.Event | None = None, *, for_ever: bool = True
) -> Exit | None:
    """Remove every trace of a sandbox and say how it ended, if that can be known.

    ``grace_s``: between SIGTERM and SIGKILL; cut short when ``hurry`` is set. Raises ``LeftError``; the record stays then.
    """
    unwatch(node, sandbox_id)
    record = node.find(sandbox_id)
    with _part("start"):
        exit_ = None if record is None else await _stopped(node, record, grace_s, hurry)
        for driver in _drivers_of(node, record):
            await driver.destroy(sandbox_id)
        await node.drain_logs(sandbox_id)
    with _part("disks"):
        await node.volumes.detach(sandbox_id)
    with _part("network"):
        await node.network.detach(sandbox_id)
    with _part("root"):
        await node.roots.remove(sandbox_id)
    with _part("logs"):
        await asyncio.to_thread(remove_tree, node.logs(sandbox_id))
    if record is not None or for_ever:
        node.drop(sandbox_id, for_ever=for_ever)
    return exit_


def _drivers_of(node: LocalNode, record: SandboxRecord | None) -> list[Driver]:
    """The one that has it, or all when nobody knows."""
    return list(node.drivers) if record is None else [node.drivers.pick(record.driver)]


async def _stopped(node: LocalNode, record: SandboxRecord, grace_s: float, hurry: asyncio.Event | None) -> Exit | None:
    if record.condition == "exited":
        return Exit(record.exit_code)
    if record.handle is None or record.condition not in _PROCESS_MAY_LIVE:
        return None
    driver, handle = node.drivers.pick(record.driver), node.handle(record)
    seconds = 0 if record.condition == "paused" else grace_s  # a frozen process cannot heed SIGTERM
    try:
        stop = await _asked_to_end(node, record, driver, handle, seconds)
        exit_ = await _unless(stop, hurry) or await driver.stop(handle, 0)
    except RuntimeFault as fault:
        log.info("stop.failed", sandbox=record.id, code=fault.code, error=str(fault))  # destroying it does not need it
        return None
    if exit_.reason == "killed" and seconds:
        node.runtime_line(record.id, f"killed: it did not end within {seconds:g} s of being asked to")
    return exit_


async def _asked_to_end(node: LocalNode, record: SandboxRecord, driver: Driver, handle: Handle, seconds: float) -> asyncio.Future[Exit]:
    """Its exit to come. A process that an earlier agent has asked already is not asked again; its time is the order's, which goes on."""
    if record.stop_requested_at is not None:
        return asyncio.ensure_future(_drained(driver, handle, seconds))
    stop = asyncio.ensure_future(driver.stop(handle, seconds))
    if seconds:
        await asyncio.sleep(0)  # it is asked first and noted then: to be asked twice is better than never
        node.put(record.model_copy(update={"stop_requested_at": node.clock()}))
    return stop


async def _drained(driver: Driver, handle: Handle, seconds: float) -> Exit:
    """The end of a process that an earlier agent has asked to end, by itself or, when ``seconds`` are over, not."""
    with contextlib.suppress(TimeoutError):
        async with asyncio.timeout(seconds):
            return await driver.wait(handle)
    return await driver.stop(handle, 0)


async def _unless(stop: asyncio.Future[Exit], hurry: asyncio.Event | None) -> Exit | None:
    """The exit, or None when somebody is in a hurry."""
    waiting = asyncio.ensure_future((hurry or asyncio.Event()).wait())
    either: set[asyncio.Future[Any]] = {stop, waiting}
    try:
        await asyncio.wait(either, return_when=asyncio.FIRST_COMPLETED)
        return stop.result() if stop.done() else None
    finally:
        waiting.cancel()
        if not stop.done():
            stop.cancel()
            await asyncio.wait({stop})
