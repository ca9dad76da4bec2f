"""A publisher between the store and the bus that loses, delays and repeats what passes through it."""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Sequence
from typing import Literal

from bus.requests import ACK_S, Ack, Headers, Message, Publisher, UnansweredError

Fault = Literal["none", "lose", "drop-ack", "twice", "late"]


class FaultyPublisher(Publisher):
    """Does to each publish what ``faults`` says next:

    ``lose``: it is not sent; ``drop-ack``: it is stored and nobody hears of it; ``twice``: it is sent twice; ``late``: it is reported as
    unanswered first, and sent while the caller is already trying again.
    """

    def __init__(self, inner: Publisher) -> None:
        super().__init__(inner.nc)
        self._inner = inner
        self._late: set[asyncio.Task[object]] = set()
        self.faults: deque[Fault] = deque()
        self.seen: list[str] = []

    async def ask(self, subject, data, headers: Headers | None = None, timeout=ACK_S):
        return await self._inner.ask(subject, data, headers, timeout)

    async def tell(self, subject, data, headers: Headers | None = None, reply="") -> None:
        await self._inner.tell(subject, data, headers, reply)

    async def publish(self, subject: str, data: bytes, headers: Headers | None = None, timeout: float = ACK_S) -> Ack:
        if not subject.startswith("strand.evt."):
            return await self._inner.publish(subject, data, headers, timeout)
        return await self._faulty(lambda: self._inner.publish(subject, data, headers, timeout))

    async def publish_batch(self, messages: Sequence[Message], timeout: float = ACK_S) -> Ack:
        return await self._faulty(lambda: self._inner.publish_batch(messages, timeout))

    async def _faulty(self, send) -> Ack:
        fault = self.faults.popleft() if self.faults else "none"
        self.seen.append(fault)
        if fault == "lose":
            raise UnansweredError("lost on the way")
        if fault == "late":
            task = asyncio.create_task(_ignore(send()))
            self._late.add(task)
            task.add_done_callback(self._late.discard)
            raise UnansweredError("late")
        ack = await send()
        if fault == "drop-ack":
            raise UnansweredError("lost on the way back")
        return await send() if fault == "twice" else ack

    async def close(self) -> None:
        await asyncio.gather(*self._late)
        await self._inner.close()


async def _ignore(sending) -> None:
    try:
        await sending
    except Exception:  # noqa: BLE001 - the caller has long been told that it was lost
        return
