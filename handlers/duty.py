"""What only one control plane does at a time: processes, reports, timers, submitted commands, liveness, the watchdog.

All control planes answer commands. The one that holds the lease is on duty; when it dies or loses the bus, another one is within a few
seconds. Two that both believe to be on duty for a moment do no harm: everything that is done has a derived id.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from contextlib import AbstractAsyncContextManager, AsyncExitStack
from typing import Any, Final, Self

import structlog

from bus.leases import Leases

log = structlog.get_logger(__name__)

KEY: Final = "control"
TTL_S: Final = 5
"""Seconds after which the duty of a dead control plane is taken over. One that starts again under its own name takes it back at once."""

Work = Callable[[], AbstractAsyncContextManager[Any]]


class Duty:
    """Runs ``work`` while this control plane, called ``name``, is on duty."""

    def __init__(self, leases: Leases, name: str, work: Sequence[Work]) -> None:
        self._leases = leases
        self._name = name
        self._work = work
        self._task: asyncio.Task[None] | None = None
        self.on = asyncio.Event()

    async def __aenter__(self) -> Self:
        self._task = asyncio.create_task(self._serve(), name="duty")
        return self

    async def __aexit__(self, *exc: object) -> None:
        if self._task is not None:
            self._task.cancel()
            await asyncio.gather(self._task, return_exceptions=True)

    async def _serve(self) -> None:
        while True:
            try:
                async with self._leases.held(KEY, self._name, TTL_S) as lease, AsyncExitStack() as stack:
                    for work in self._work:
                        await stack.enter_async_context(work())
                    self.on.set()
                    log.info("duty.on", name=self._name)
                    await lease.lost.wait()
            except Exception:
                log.exception("duty.failed")
                await asyncio.sleep(TTL_S / 4)
            finally:
                self.on.clear()
            log.warning("duty.off", name=self._name)
