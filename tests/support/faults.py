"""A publisher between the store and the bus that loses, delays and repeats what passes through it, in both directions."""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Sequence
from typing import Literal

from nats.aio.msg import Msg

from bus.replies import Headers, UnansweredError
from bus.requests import ACK_S, Ack, Message, Publisher

Fault = Literal["none", "lose", "drop-ack", "twice", "late"]
ReadFault = Literal["none", "lose", "drop-answer", "twice", "late", "stale"]

_ANY_REPLICA = "$JS.API.DIRECT.GET."


class FaultyPublisher(Publisher):
    """Does to each publish what ``faults`` says next:

    ``lose``: it is not sent; ``drop-ack``: it is stored and nobody hears of it; ``twice``: it is sent twice; ``late``: it is reported as
    unanswered first, and sent while the caller is already trying again.

    And to each read (a question, or the order for a page) what ``read_faults`` says next: ``lose`` and ``late`` as above; ``drop-answer``:
    it is asked and nobody hears the answer; ``twice``: the second answer counts; ``stale``: a direct get is answered as it was the last
    time, as by a follower that is behind (reference/jetstream-eventstore.md §1.4). A leader's answer is never stale, and a page comes once.
    """

    def __init__(self, inner: Publisher) -> None:
        super().__init__(inner.nc)
        self._inner = inner
        self._late: set[asyncio.Task[object]] = set()
        self._answers: dict[tuple[str, bytes], Msg] = {}
        self.faults: deque[Fault] = deque()
        self.read_faults: deque[ReadFault] = deque()
        self.seen: list[str] = []

    async def ask(self, subject, data, headers: Headers | None = None, timeout=ACK_S) -> Msg:
        fault, question = self._next_read(), (subject, data)
        if fault == "lose":
            raise UnansweredError("the question was lost")
        if fault == "late":
            self._later(self._inner.ask(subject, data, headers, timeout))
            raise UnansweredError("the question is late")
        if fault == "stale" and question in self._answers:
            return self._answers[question]
        if fault == "twice":
            await self._inner.ask(subject, data, headers, timeout)
        answer = await self._inner.ask(subject, data, headers, timeout)
        if subject.startswith(_ANY_REPLICA):
            self._answers[question] = answer
        if fault == "drop-answer":
            raise UnansweredError("the answer was lost")
        return answer

    async def tell(self, subject, data, headers: Headers | None = None, reply="") -> None:
        fault = self._next_read() if reply else "none"
        if fault == "drop-answer":
            await self._inner.tell(subject, data, headers, reply)
        if fault in {"lose", "late", "drop-answer"}:
            raise UnansweredError("the order for a page was lost")
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
            self._later(send())
            raise UnansweredError("late")
        ack = await send()
        if fault == "drop-ack":
            raise UnansweredError("lost on the way back")
        return await send() if fault == "twice" else ack

    def _next_read(self) -> ReadFault:
        return self.read_faults.popleft() if self.read_faults else "none"

    def _later(self, sending) -> None:
        task = asyncio.create_task(_ignore(sending))
        self._late.add(task)
        task.add_done_callback(self._late.discard)

    async def close(self) -> None:
        await asyncio.gather(*self._late)
        await self._inner.close()


async def _ignore(sending) -> None:
    try:
        await sending
    except Exception:  # noqa: BLE001 - the caller has long been told that it was lost
        return
