"""Reading a part of an object: from any byte on, a few chunks in memory, without reading what is before it.

A file's chunks are in order on one subject, but its stream has other files' chunks between them, so where chunk *k* is has to be found. It
is at least *k* messages behind the first one; each look there tells by the chunk's message id (``<nuid>-<number>``, ``bus/objects.py``) how
far it still is. Where nobody stored anything meanwhile, the first look finds it.
"""

from __future__ import annotations

from collections.abc import AsyncIterator
from typing import Final

from nats.aio.client import Client

from bus import direct
from bus.objects import Stat, chunks_of, stream_of
from domain.kernel.errors import Refused

AHEAD: Final = 4
"""Chunks asked for at once: what one reader holds in memory."""
_ID: Final = "Nats-Msg-Id"


async def read(nc: Client, bucket: str, what: Stat, start: int, size: int) -> AsyncIterator[bytes]:
    """``size`` bytes of ``what`` from byte ``start`` on. Nothing says that they are the right ones but the digest of the whole.

    Raises ``Refused``: ``bus.unavailable``, and ``object.replaced`` when somebody put or deleted it meanwhile.
    """
    if size <= 0:
        return
    first = (await _page(nc, bucket, what, 1, 1))[0]
    number, skip = divmod(start, len(first.data))
    seq = await _find(nc, bucket, what, first.seq, number)
    while size > 0:
        for message in await _page(nc, bucket, what, seq, AHEAD):
            data = message.data[skip : skip + size]
            skip, size, seq = 0, size - len(data), message.seq + 1
            if data:
                yield data
            if size <= 0:
                return


async def _find(nc: Client, bucket: str, what: Stat, first: int, number: int) -> int:
    """The sequence of chunk ``number``, the first one being at ``first``."""
    at, seq = 0, first
    while at < number:
        seq += number - at
        found = (await _page(nc, bucket, what, seq, 1))[0]
        at, seq = _number(found, what, number), found.seq
    return seq


def _number(chunk: direct.Stored, what: Stat, most: int) -> int:
    """Which chunk it is. Raises ``Refused`` (``object.corrupt``) for one of which this cannot be told."""
    nuid, _, number = chunk.headers.get(_ID, "").rpartition("-")
    if nuid != what.nuid or not number.isdecimal() or int(number) > most:
        raise Refused("object.corrupt", f"message {chunk.seq} does not say which chunk of {what.name} it is")
    return int(number)


async def _page(nc: Client, bucket: str, what: Stat, seq: int, count: int) -> list[direct.Stored]:
    got = await direct.batch(nc, stream_of(bucket), chunks_of(bucket, what.nuid), seq, count)
    if not got.messages:
        raise Refused("object.replaced", f"{what.name} was replaced or deleted while it was read", retryable=True)
    return got.messages
