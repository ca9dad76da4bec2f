"""The log as an iterator: commits behind a position as they are stored, for ever, over a consumer that survives disconnects."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Sequence
from typing import Final

from bus import subjects
from bus.commit import Commit
from bus.connection import Client
from bus.requests import ApiError, call
from bus.subscription import Tail
from domain.kernel.errors import Refused

AHEAD: Final = 8
"""Batches that may wait for the reader; then the tail stops asking for more."""


async def position(nc: Client) -> int:
    """Where the log ends now. Raises ``auth.denied`` when this connection may not know, ``bus.unavailable`` when nobody says."""
    try:
        said = await call(nc, f"STREAM.INFO.{subjects.EVENTS}", within=5)
    except ApiError as error:
        raise Refused("auth.denied", f"this connection may not follow the log: {error}") from error
    return int(said["state"]["last_seq"])


async def commits(nc: Client, after: int, filters: Sequence[str]) -> AsyncGenerator[Sequence[Commit], None]:
    """Batches of commits behind ``after`` on those subjects. Raises what ends the tail: a message that is no commit."""
    batches: asyncio.Queue[Sequence[Commit]] = asyncio.Queue(AHEAD)
    async with Tail[Commit](nc, after, filters, batches.put) as tail:
        ended = asyncio.create_task(tail.wait())
        taken: asyncio.Task[Sequence[Commit]] | None = None
        try:
            while True:
                taken = asyncio.create_task(batches.get())
                await asyncio.wait([taken, ended], return_when=asyncio.FIRST_COMPLETED)
                if not taken.done():
                    await ended
                    return
                yield taken.result()
        finally:
            for task in filter(None, (taken, ended)):
                task.cancel()
            await asyncio.gather(*filter(None, (taken, ended)), return_exceptions=True)
