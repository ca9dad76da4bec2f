"""Two things that are done at the same time, where neither may go on after the other has failed and its owner has cleaned up."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable


async def together(*work: Awaitable[object]) -> None:
    """All have ended when this returns or raises; what it raises is the first one's failure."""
    for failed in await asyncio.gather(*work, return_exceptions=True):
        if isinstance(failed, BaseException):
            raise failed
