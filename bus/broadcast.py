"""Telling every process of one kind something at once, on a core subject: for hints whose loss costs time and nothing else."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import TYPE_CHECKING

import structlog

if TYPE_CHECKING:
    from nats.aio.client import Client
    from nats.aio.msg import Msg

log = structlog.get_logger(__name__)


class Broadcast:
    """Core publish and subscribe; nothing is stored."""

    def __init__(self, nc: Client) -> None:
        self._nc = nc

    async def say(self, subject: str, data: bytes) -> None:
        """Everybody who listens now hears it."""
        await self._nc.publish(subject, data)

    async def listen(self, subject: str, hear: Callable[[bytes], Awaitable[None]]) -> None:
        """Hear what is said from now on. What ``hear`` raises is logged and goes no further."""

        async def callback(message: Msg) -> None:
            try:
                await hear(message.data)
            except Exception:
                log.exception("broadcast.failed", subject=subject)

        await self._nc.subscribe(subject, cb=callback)
