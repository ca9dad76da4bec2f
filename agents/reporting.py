"""Reports on their way out: written down before they are sent, sent until the bus has stored them.

What ends an order, and what was noticed, is never lost; steps are told as they happen and again with the end; progress is only ever the
latest. Reports that concern one thing are sent one after the other, different things side by side.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Awaitable, Callable
from datetime import datetime
from typing import Any, Final

import structlog

from agents.crashpoints import CrashPoints
from agents.journal import Journal
from agents.records import Memory, end_entry
from domain.kernel.errors import Refused
from domain.kernel.ids import SYSTEM_PROJECT
from domain.nodes.orders import Failure, Observation, Order, Report, ReportKind

log = structlog.get_logger(__name__)

Send = Callable[[Report], Awaitable[Any]]

PARALLEL: Final = 64
PAUSES_S: Final = (0.1, 0.5, 1.0, 2.0, 5.0)


class Reporter:
    """Everything that this agent says. ``send`` returns when the bus has stored the report, and raises when nobody knows whether it has."""

    def __init__(self, node: str, journal: Journal[Memory], send: Send, clock: Callable[[], datetime], crash: CrashPoints) -> None:
        self._node = node
        self._journal = journal
        self._send = send
        self._clock = clock
        self._crash = crash
        self._places = asyncio.Semaphore(PARALLEL)
        self._tails: dict[str, asyncio.Task[None]] = {}
        self._latest: dict[tuple[str, str], Report] = {}
        """By order and phase: every phase of a long order is told, of each only the latest."""
        self._numbers: dict[str, int] = {}

    def start(self) -> None:
        """Send what an earlier process could not."""
        for report in list(self._journal.state.outbox.values()):
            self._queue(report)

    async def close(self, seconds: float) -> None:
        """Let what is under way arrive, for at most ``seconds``; what does not is sent by the next process."""
        if self._tails:
            await asyncio.wait(set(self._tails.values()), timeout=seconds)
        left = list(self._tails.values())
        for task in left:
            task.cancel()
        await asyncio.gather(*left, return_exceptions=True)

    # ------------------------------------------------------------------------------------------------------------ orders

    def of(self, order: Order, kind: ReportKind, body: dict[str, Any], error: Failure | None = None, suffix: str = "") -> Report:
        """A report about an order."""
        return Report(
            id=f"{order.id}:{kind}{suffix}",
            order=order.id,
            node=self._node,
            verb=order.verb,
            kind=kind,
            project=order.project,
            process=order.process,
            process_id=order.process_id,
            attempt=order.attempt,
            at=self._clock(),
            trace=order.trace,
            cause=order.cause,
            body=body,
            error=error,
        )

    async def end(self, order: Order, report: Report, *, lasting: bool = True) -> None:
        """The order is over. Returns when the report is stored on the bus and, if anything of it outlives the machine, that is on the disk.

        Until then the lane keeps the order.
        """
        self._journal.write(end_entry(order.id, self._clock(), report))
        await self.again(report)
        if lasting:
            await self._journal.sync()

    async def again(self, report: Report) -> None:
        """Send a report, also one that was sent before, and wait until it is stored."""
        await asyncio.shield(self._queue(report))

    def later(self, report: Report) -> asyncio.Task[None]:
        """Something more about an order that has ended. It is written down, and the order's answer stays what it was."""
        self._journal.write({"k": "say", "report": report.model_dump(mode="json", exclude_defaults=True)})
        return self._queue(report)

    async def steps(self, report: Report) -> None:
        """Send a report that is not worth writing down, in its turn."""
        await self._queue(report)

    def progress(self, order: Order, body: dict[str, Any]) -> None:
        """How far an order is. While an earlier one of the same phase is under way only the latest is kept."""
        key = order.id, str(body.get("phase", ""))
        number = self._numbers[order.id] = self._numbers.get(order.id, 0) + 1
        waiting = key in self._latest
        self._latest[key] = self.of(order, ReportKind.PROGRESS, body, suffix=f":{self._clock().timestamp():.6f}-{number}")
        if not waiting:
            self._chain(_key(self._latest[key]), lambda: self._send_latest(key))

    # ------------------------------------------------------------------------------------------------------ observations

    def observe(
        self, what: Observation, body: dict[str, Any], name: str, *, project: str = SYSTEM_PROJECT, sandbox: str | None = None
    ) -> asyncio.Task[None]:
        """Say something that belongs to no order. ``name`` makes it this one thing: the same name is the same observation."""
        process, identifier = ("node", self._node) if sandbox is None else ("sandbox", sandbox)
        report = Report(
            id=f"{self._node}:{what}:{name}",
            node=self._node,
            verb=what,
            kind=ReportKind.OBSERVED,
            project=project,
            process=process,
            process_id=identifier,
            at=self._clock(),
            body=body,
        )
        self._journal.write({"k": "say", "report": report.model_dump(mode="json", exclude_defaults=True)})
        return self._queue(report)

    # ----------------------------------------------------------------------------------------------------------- sending

    def _queue(self, report: Report) -> asyncio.Task[None]:
        return self._chain(_key(report), lambda: self._deliver(report))

    def _chain(self, key: str, work: Callable[[], Awaitable[None]]) -> asyncio.Task[None]:
        """Do ``work`` after everything that was queued under this key before."""
        before = self._tails.get(key)

        async def in_turn() -> None:
            if before is not None:
                await asyncio.wait({before})  # however it ended
            await work()

        task = asyncio.create_task(in_turn())
        self._tails[key] = task
        task.add_done_callback(lambda done: self._tails.pop(key) if self._tails.get(key) is done else None)
        return task

    async def _send_latest(self, key: tuple[str, str]) -> None:
        report = self._latest.pop(key, None)
        if report is not None:
            with contextlib.suppress(Refused):
                await self._send(report)

    async def _deliver(self, report: Report) -> None:
        ends = report.kind in {ReportKind.DONE, ReportKind.FAILED}
        if ends:
            self._crash.here("report:before")
        await self._until_stored(report)
        if ends:
            self._crash.here("report:after")
        if ends or report.kind is ReportKind.OBSERVED:
            self._numbers.pop(report.order or "", None)
            if report.id in self._journal.state.outbox:
                self._journal.write({"k": "sent", "id": report.id})

    async def _until_stored(self, report: Report) -> None:
        tries = 0
        while True:
            try:
                async with self._places:
                    await self._send(report)
            except Exception as error:  # noqa: BLE001 - the bus may fail in any way; the report stays
                if isinstance(error, Refused) and not error.retryable:
                    log.critical("report.undeliverable", id=report.id, code=error.code, error=error.message)
                    return
                log.info("report.again", id=report.id, tries=tries, error=repr(error)[:300])
            else:
                return
            await asyncio.sleep(PAUSES_S[min(tries, len(PAUSES_S) - 1)])
            tries += 1


def _key(report: Report) -> str:
    return f"{report.project}/{report.process}/{report.process_id}"
