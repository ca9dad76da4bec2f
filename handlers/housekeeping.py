"""Housekeeping of the control plane on duty: what nobody needs any more goes, and what is lacking and nobody reports is looked for."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from datetime import timedelta

import structlog

from bus import objects
from bus.requests import ApiError
from bus.subjects import ARTIFACTS_BUCKET
from domain.kernel.errors import Refused
from handlers.control import Control
from handlers.processes import shipping

log = structlog.get_logger(__name__)


class Housekeeping:
    """Sweeps at the beginning of a duty and every ``collect_s`` seconds, and does each of ``rounds`` then.

    Nodes have no right to purge: what they abandon waits for this.
    """

    def __init__(self, control: Control, rounds: Sequence[Callable[[], Awaitable[None]]] = ()) -> None:
        self._control = control
        self._rounds = (self._sweep, self._collect_chunks, *rounds)

    @contextlib.asynccontextmanager
    async def running(self) -> AsyncIterator[None]:
        """Sweep while the block runs."""
        task = asyncio.create_task(self._run(), name="housekeeping")
        try:
            yield
        finally:
            task.cancel()
            await asyncio.gather(task, return_exceptions=True)

    async def _run(self) -> None:
        while True:
            for work in self._rounds:
                try:
                    await work()
                except (Refused, ApiError) as error:
                    log.info("housekeeping.refused", error=repr(error)[:300])
                except Exception:
                    log.exception("housekeeping.failed")
            await asyncio.sleep(self._control.deadlines.collect_s)

    async def _sweep(self) -> None:
        swept = await objects.sweep(self._control.nc, ARTIFACTS_BUCKET, timedelta(seconds=self._control.deadlines.abandoned_s))
        if swept:
            log.info("objects.swept", files=swept)

    async def _collect_chunks(self) -> None:
        if collected := await shipping.collect(self._control):
            log.info("chunks.collected", chunks=collected)
