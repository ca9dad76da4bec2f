"""Reacting to the log with a position that the server keeps: what process managers stand on.

Every commit is handled at least once. Commits of one aggregate are handled in order and one after the other, also across a crash: on start
the consumer is reset to its acknowledged floor, because a redelivery by timer would come after newer commits.
"""

from __future__ import annotations

import asyncio
from collections import OrderedDict, deque
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass
from typing import Any, Final, Self

import nats.errors
import structlog
from nats.aio.client import Client

from bus import subjects
from bus.commit import Commit, Corrupt, decode
from bus.fast import publish_all
from bus.pull import NANO, Delivered, Pull
from bus.replies import UnansweredError
from bus.requests import call
from domain.kernel.errors import Refused

log = structlog.get_logger(__name__)

ACK_WAIT_S: Final = 30
ATTACH_S: Final = 5.0
IN_FLIGHT: Final = 64
WINDOW: Final = 512
"""Commits delivered and not acknowledged, those waiting behind another of their aggregate included."""
ATTEMPTS: Final = 8
FIRST_PAUSE_S: Final = 0.05
LONGEST_PAUSE_S: Final = 5.0
REMEMBERED: Final = 4 * WINDOW
ACK_SOON_S: Final = 0.05
"""How long an acknowledgement waits for others to share its way with: each one sent alone takes time from the next command's reply."""
ACK_AT_ONCE: Final = 64
"""As many acknowledgements wait for nothing more."""


ACK: Final = b"+ACK"


@dataclass(slots=True)
class _Work:
    """A commit being handled. ``reply`` is where its acknowledgement goes, which changes when it is delivered again."""

    seq: int
    reply: str
    data: bytes


class DurableReader:
    """Hands the commits on ``filters`` to ``handle``, several at a time, and remembers on the server how far it came.

    A refusal that is retryable is tried again until it works; anything else ``attempts`` times, and then the commit ends in stream DEAD
    with the reason. One reader per ``durable`` name may run at a time. ``patience``: how many seconds a commit on a subject may wait when
    none of its aggregate does already.
    """

    def __init__(
        self,
        nc: Client,
        durable: str,
        filters: Sequence[str],
        handle: Callable[[Commit], Awaitable[None]],
        *,
        stream: str = subjects.EVENTS,
        in_flight: int = IN_FLIGHT,
        attempts: int = ATTEMPTS,
        first_pause_s: float = FIRST_PAUSE_S,
        patience: Callable[[bytes], float] = lambda _: 0.0,
    ) -> None:
        self._patience = patience
        self._nc = nc
        self._durable = subjects.token(durable)
        self._filters = list(filters)
        self._handle = handle
        self._stream = stream
        self._attempts = attempts
        self._first_pause_s = first_pause_s
        self._slots = asyncio.Semaphore(in_flight)
        self._work: dict[int, _Work] = {}
        self._queues: dict[bytes, deque[_Work]] = {}
        self._done: OrderedDict[int, None] = OrderedDict()
        self._tasks: set[asyncio.Task[None]] = set()
        self._background: list[asyncio.Task[None]] = []
        self._owed: list[str] = []
        self._later: asyncio.TimerHandle | None = None
        self._stopped = False
        self._pull = Pull(nc, stream, self._attach, self._receive, window=WINDOW, gapless=True)

    async def start(self) -> Self:
        """Begin, in the background."""
        self._background = [
            asyncio.create_task(self._pull.run(), name=f"durable {self._durable}"),
            asyncio.create_task(self._keep_alive(), name=f"durable {self._durable} in progress"),
        ]
        return self

    async def stop(self) -> None:
        """End it. What is being handled is cancelled and will be delivered again."""
        self._stopped = True
        if self._later is not None:
            self._later.cancel()
        await self._acknowledge()
        tasks = [*self._background, *self._tasks]
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    async def __aenter__(self) -> Self:
        return await self.start()

    async def __aexit__(self, *exc: object) -> None:
        await self.stop()

    @property
    def idle(self) -> bool:
        """True when nothing that was delivered is left to do."""
        return not self._work

    async def _attach(self, _: bool) -> str:
        config: dict[str, Any] = {
            "durable_name": self._durable,
            "deliver_policy": "all",
            "ack_policy": "explicit",
            "ack_wait": ACK_WAIT_S * NANO,
            "max_deliver": -1,
            "max_ack_pending": WINDOW,
            "filter_subjects": self._filters,
        }
        where = f"{self._stream}.{self._durable}"
        await call(self._nc, f"CONSUMER.CREATE.{where}", {"stream_name": self._stream, "config": config}, within=ATTACH_S)
        await call(self._nc, f"CONSUMER.RESET.{where}", within=ATTACH_S)
        return self._durable

    def _receive(self, message: Delivered, seq: int, _: int) -> int:
        reply = message.reply.decode()
        if seq in self._done:
            self._acknowledge_soon(reply)
        elif (known := self._work.get(seq)) is not None:
            known.reply = reply
        else:
            work = self._work[seq] = _Work(seq, reply, message.data)
            subject = bytes(message.subject)
            queue = self._queues.get(subject)
            if queue is None:
                self._queues[subject] = deque([work])
                self._begin_soon(subject)
            else:
                queue.append(work)
        return len(self._work)

    def _begin_soon(self, subject: bytes) -> None:
        if patience := self._patience(subject):
            asyncio.get_running_loop().call_later(patience, self._begin, subject)
        else:
            self._begin(subject)

    def _begin(self, subject: bytes) -> None:
        if not self._stopped:
            self._spawn(self._drain(subject))

    def _spawn(self, coroutine: Any) -> None:
        task = asyncio.create_task(coroutine)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def _drain(self, subject: bytes) -> None:
        """Handle one aggregate's commits, oldest first."""
        queue = self._queues[subject]
        while queue:
            work = queue[0]
            async with self._slots:
                answer = await self._until_settled(work)
            queue.popleft()
            del self._work[work.seq]
            self._done[work.seq] = None
            if len(self._done) > REMEMBERED:
                self._done.popitem(last=False)
            if answer == ACK:
                self._acknowledge_soon(work.reply)
            else:
                await self._say(work.reply, answer)
            await self._pull.ask(len(self._work))
        del self._queues[subject]

    async def _until_settled(self, work: _Work) -> bytes:
        """Handle one commit, again and again if need be; the acknowledgement it has earned."""
        pause, failures = self._first_pause_s, 0
        while True:
            try:
                await self._handle(decode(work.data, work.seq))
            except Corrupt as error:
                log.error("durable.corrupt", durable=self._durable, seq=work.seq, error=str(error))  # noqa: TRY400 - nothing in the trace
                return f"+TERM {error}".encode()
            except Refused as refusal:
                failures += not refusal.retryable
                why = f"{refusal.code}: {refusal.message}"
                log.warning("durable.refused", durable=self._durable, seq=work.seq, why=why)
            except Exception as error:
                failures += 1
                why = repr(error)
                log.exception("durable.failed", durable=self._durable, seq=work.seq, failures=failures)
            else:
                return ACK
            if failures >= self._attempts:
                return f"+TERM {why}"[:1000].replace("\n", " ").encode()
            await asyncio.sleep(pause)
            pause = min(pause * 2, LONGEST_PAUSE_S)

    def _acknowledge_soon(self, reply: str) -> None:
        """The server may hear of it late: what it delivers again meanwhile is known here, and handling twice does no harm."""
        self._owed.append(reply)
        if len(self._owed) == 1:
            self._later = asyncio.get_running_loop().call_later(ACK_SOON_S, lambda: self._spawn(self._acknowledge()))
        elif len(self._owed) == ACK_AT_ONCE:
            self._spawn(self._acknowledge())

    async def _acknowledge(self) -> None:
        owed, self._owed = self._owed, []
        if owed:
            await self._say_all([(reply, ACK) for reply in owed])

    async def _say(self, reply: str, answer: bytes) -> None:
        await self._say_all([(reply, answer)])

    async def _say_all(self, answers: Sequence[tuple[str, bytes]]) -> None:
        try:
            await publish_all(self._nc, answers)
        except (nats.errors.Error, UnansweredError, OSError) as error:
            log.warning("durable.not-acknowledged", durable=self._durable, error=repr(error))

    async def _keep_alive(self) -> None:
        """Tell the server that what is being handled still is, lest it deliver it again."""
        while True:
            await asyncio.sleep(ACK_WAIT_S / 3)
            for work in list(self._work.values()):
                await self._say(work.reply, b"+WPI")
