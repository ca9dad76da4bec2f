"""Housekeeping of the control plane on duty: what writers that died have left in the object store goes."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator
from datetime import timedelta

import structlog

from bus import objects
from bus.requests import ApiError
from bus.subjects import ARTIFACTS_BUCKET
from domain.kernel.errors import Refused
from handlers.control import Control

log = structlog.get_logger(__name__)


class Housekeeping:
    """Sweeps at the beginning of a duty and every ``collect_s`` seconds. Nodes have no right to purge: what they abandon waits for this."""

    def __init__(self, control: Control) -> None:
        self._control = control

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
        deadlines = self._control.deadlines
        while True:
            try:
                swept = await objects.sweep(self._control.nc, ARTIFACTS_BUCKET, timedelta(seconds=deadlines.abandoned_s))
                if swept:
                    log.info("objects.swept", files=swept)
            except (Refused, ApiError) as error:
                log.info("objects.not-swept", error=repr(error)[:300])
            except Exception:
                log.exception("housekeeping.failed")
            await asyncio.sleep(deadlines.collect_s)
