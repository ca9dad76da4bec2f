"""Mending the bus: a nats-server that could not write is started again as soon as its disk has room (bus/health.py says why)."""

from __future__ import annotations

import asyncio
import shutil
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Final

import structlog

from bus.connection import connect
from bus.health import unwritable
from domain.kernel.errors import Refused

log = structlog.get_logger(__name__)

LOOK_S: Final = 2.0
ROOM: Final = 8 << 20
"""Bytes that have to be free before a restart is worth it: what the server writes on its way up, and something to go on with."""


async def mend(url: str, creds: Path, disk: Path, restart: Callable[[], Awaitable[None]]) -> None:
    """For ever: look, and call ``restart`` when there are streams that cannot be written to although ``disk`` has room."""
    async with await connect(url, name="mending", creds=creds, on_closed=lambda: None, timeout=None) as system:
        told = False
        while True:
            await asyncio.sleep(LOOK_S)
            try:
                faults = await unwritable(system)
            except Refused:  # it is down, or stands still; whoever starts it again sees to that
                continue
            if faults and not told:
                log.error("bus.unwritable", streams=len(faults), first=faults[0])
            told = bool(faults)
            if faults and shutil.disk_usage(disk).free >= ROOM:
                log.warning("bus.restarted", streams=len(faults))
                await restart()
