"""Leases: at most one holder of a key at a time, until it stops renewing.

A lease is one key in a bucket, written by compare-and-set, and every write carries its time to live again: nats-py's ``kv.update``
drops it, which makes a renewed lease permanent (reference/jetstream-eventstore.md §1.6). A lease protects work, not data: who acts on a
lease that may have run out must still write with an expectation.
"""

from __future__ import annotations

import asyncio
import contextlib
import secrets
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field, replace
from typing import Any, Final

import orjson
from nats.aio.client import Client

from bus import direct, subjects
from bus.requests import WITHIN_S, ApiError, store
from domain.kernel.errors import Refused

_EXPECT: Final = "Nats-Expected-Last-Subject-Sequence"
_STALE: Final = 10071
_IN_FLIGHT: Final = 10164


class LeaseLostError(Exception):
    """Somebody else holds the key now, or nobody does."""


@dataclass(frozen=True, slots=True)
class Lease:
    """A key held. ``until`` is on this process's monotonic clock, counted from before the bus was asked: never too late."""

    key: str
    holder: str
    ttl_s: int
    seq: int
    until: float
    lost: asyncio.Event = field(default_factory=asyncio.Event, compare=False, repr=False)
    """Set when a lease of :meth:`Leases.held` could not be kept."""

    @property
    def valid(self) -> bool:
        return time.monotonic() < self.until and not self.lost.is_set()


class Leases:
    """Acquires and renews over one connection. Keys are single subject tokens; times to live are whole seconds, one at least."""

    def __init__(self, nc: Client, bucket: str = subjects.LEASES_BUCKET) -> None:
        self._nc = nc
        self._bucket = bucket

    async def acquire(self, key: str, holder: str, ttl_s: int) -> Lease | None:
        """The lease, or None while somebody else has it; a holder that asks again gets it again. Raises ``Refused``."""
        current = await self._current(key)
        if current is not None and current[1] not in {"", holder}:
            return None
        return await self._write(key, holder, ttl_s, current[0] if current else 0)

    async def renew(self, lease: Lease) -> Lease:
        """The same lease for another ``ttl_s``. Raises ``LeaseLostError``."""
        renewed = await self._write(lease.key, lease.holder, lease.ttl_s, lease.seq)
        if renewed is None:
            raise LeaseLostError(lease.key)
        return replace(renewed, lost=lease.lost)

    async def release(self, lease: Lease) -> None:
        """Let go at once; a lease that was lost is nobody's business any more, and one that runs out meanwhile lets go by itself."""
        await self._write(lease.key, "", 1, lease.seq, max(lease.until - time.monotonic(), 0.01))

    @asynccontextmanager
    async def held(self, key: str, holder: str, ttl_s: int) -> AsyncIterator[Lease]:
        """Wait for the lease, keep it renewed while the block runs, let it go afterwards. ``lost`` is set when it cannot be kept."""
        while (lease := await self._try(key, holder, ttl_s)) is None:  # noqa: ASYNC110 - the holder is elsewhere
            await asyncio.sleep(ttl_s / 4)
        keeping = asyncio.create_task(self._keep(lease))
        try:
            yield lease
        finally:
            keeping.cancel()
            last = (await asyncio.gather(keeping, return_exceptions=True))[0]
            with contextlib.suppress(Refused):
                await self.release(last if isinstance(last, Lease) else lease)

    async def _try(self, key: str, holder: str, ttl_s: int) -> Lease | None:
        with contextlib.suppress(Refused):
            return await self.acquire(key, holder, ttl_s)
        return None

    async def _keep(self, lease: Lease) -> Lease:
        try:
            while True:
                await asyncio.sleep(lease.ttl_s / 3)
                try:
                    async with asyncio.timeout(max(lease.until - time.monotonic(), 0.01)):
                        lease = await self.renew(lease)
                except (LeaseLostError, Refused, TimeoutError):
                    lease.lost.set()
                    return lease
        except asyncio.CancelledError:
            return lease

    async def _current(self, key: str) -> tuple[int, str] | None:
        found = await direct.get(self._nc, f"KV_{self._bucket}", leader=True, last_by_subj=self._subject(key))
        return None if found is None else (found.seq, _holder(found.data))

    def _subject(self, key: str) -> str:
        return f"$KV.{self._bucket}.{subjects.token(key)}"

    async def _write(self, key: str, holder: str, ttl_s: int, expected: int, within: float = WITHIN_S) -> Lease | None:
        """One compare-and-set. A conflict with what this very call has stored, before its ack was lost, is a success."""
        begun, data = time.monotonic(), orjson.dumps({"holder": holder, "nonce": secrets.token_hex(8)})
        headers = {_EXPECT: str(expected), "Nats-TTL": str(max(int(ttl_s), 1))}
        try:
            seq = (await store(self._nc, self._subject(key), data, headers=headers, within=within)).seq
        except ApiError as error:
            if error.err_code not in {_STALE, _IN_FLIGHT}:
                raise
            found = await direct.get(self._nc, f"KV_{self._bucket}", leader=True, last_by_subj=self._subject(key))
            if found is None or found.data != data:
                return None
            seq = found.seq
        return Lease(key, holder, ttl_s, seq, begun + ttl_s)


def _holder(data: bytes) -> str:
    try:
        said: Any = orjson.loads(data)
        return str(said["holder"])
    except (orjson.JSONDecodeError, KeyError, TypeError):
        return "unknown"
