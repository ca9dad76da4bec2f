"""Following the log from a position on, for as long as the process lives: what views and indexes are made from."""

from __future__ import annotations

import asyncio
import contextlib
import secrets
from collections.abc import Awaitable, Callable, Sequence
from typing import Any, Final, Generic, Self, TypeVar

import structlog
from nats.aio.client import Client

from bus import subjects
from bus.commit import Commit, decode
from bus.pull import NANO, Delivered, Pull
from bus.requests import call

T = TypeVar("T")

log = structlog.get_logger(__name__)

WINDOW: Final = 4_000
"""Messages asked for ahead of the handler."""
BATCH: Final = 1000
ATTACH_S: Final = 5.0
GATHER_S: Final = 0.002
"""How often it is looked whether a whole batch is there, while more than that is still to come."""
EAGER_S: Final = 0.05
"""How long after somebody waited nothing is lingered over."""
FORGOTTEN_S: Final = 60
"""After this long without its reader, the server drops the consumer."""


class Tail(Generic[T]):
    """Hands over what is stored after position ``after`` on ``filters``, in order, in batches; each message once per ``Tail``.

    It lives through disconnects, restarts and lost consumers, resuming after the last message received. ``handle_batch`` is called with
    one batch at a time; what it raises ends the tail, and comes out of ``wait``. ``seq`` is the last position handled. ``caught_up`` is set
    when everything that was stored at the start has been handled. From then on what comes alone is handled after ``linger_s``, together
    with what came meanwhile, unless somebody calls ``hurry``: what nobody waits for leaves the processors to what somebody does.
    ``decode`` turns (data, seq) into what a batch is made of; without it that is (seq, data).
    """

    def __init__(
        self,
        nc: Client,
        after: int,
        filters: Sequence[str],
        handle_batch: Callable[[Sequence[T]], Awaitable[None]],
        *,
        decode: Callable[[bytes, int], T] | None = decode,  # type: ignore[assignment]  # T is Commit unless the caller says otherwise
        stream: str = subjects.EVENTS,
        batch: int = BATCH,
        linger_s: float = 0,
    ) -> None:
        self._nc = nc
        self._linger_s = linger_s
        self._hurried = asyncio.Event()
        self._eager_until = 0.0
        self._filters = list(filters)
        self._handle_batch = handle_batch
        self._decode = decode
        self._stream = stream
        self._batch = batch
        self._received = after
        self._buffer: list[tuple[int, bytes]] = []
        self._left = -1
        self._count = 0
        self._handled = 0
        self._goal = 0
        self._arrived = asyncio.Event()
        self._pull = Pull(nc, stream, self._attach, self._receive, window=WINDOW, gapless=True)
        self._task: asyncio.Task[None] | None = None
        self.seq = after
        self.caught_up = asyncio.Event()

    async def start(self) -> Self:
        """Begin, in the background."""
        self._task = asyncio.create_task(self._run(), name=f"tail of {self._stream}")
        self._task.add_done_callback(_report_end)
        return self

    async def wait(self) -> None:
        """Until the end, which is ``stop`` or an exception of the handler."""
        if self._task is not None:
            await asyncio.wait([self._task])
            if not self._task.cancelled():
                self._task.result()

    async def stop(self) -> None:
        """End it. A batch being handled is cancelled."""
        if self._task is not None:
            self._task.cancel()
            await asyncio.wait([self._task])

    async def __aenter__(self) -> Self:
        return await self.start()

    async def __aexit__(self, *exc: object) -> None:
        await self.stop()

    async def _run(self) -> None:
        receiving = asyncio.create_task(self._pull.run(), name="tail pull")
        handling = asyncio.create_task(self._handle(), name="tail handler")
        try:
            await asyncio.wait([receiving, handling], return_when=asyncio.FIRST_COMPLETED)
        finally:
            receiving.cancel()
            handling.cancel()
            await asyncio.gather(receiving, handling, return_exceptions=True)
        for task in (handling, receiving):
            if not task.cancelled():
                task.result()

    async def _attach(self, _: bool) -> str:
        """A consumer from where we are. It keeps no state on disk, and the server forgets it by itself."""
        name = f"tail-{secrets.token_hex(8)}"
        config: dict[str, Any] = {
            "name": name,
            "deliver_policy": "by_start_sequence",
            "opt_start_seq": self._received + 1,
            "ack_policy": "none",
            "filter_subjects": self._filters,
            "mem_storage": True,
            "num_replicas": 1,
            "inactive_threshold": FORGOTTEN_S * NANO,
        }
        verb = f"CONSUMER.CREATE.{self._stream}.{name}"
        made = await call(self._nc, verb, {"stream_name": self._stream, "config": config}, within=ATTACH_S)
        self._left = int(made["num_pending"])
        self._goal = self._count + self._left
        self._arrived.set()
        return name

    def _receive(self, message: Delivered, seq: int, pending: int) -> int:
        self._received = seq
        self._left = pending
        self._count += 1
        buffer = self._buffer
        if not buffer:  # otherwise whoever handles them is on the way already
            self._arrived.set()
        buffer.append((seq, message.data))
        return len(buffer)

    def hurry(self) -> None:
        """Somebody waits for what has come, or is about to; and whoever does is likely to do so again soon."""
        self._hurried.set()
        self._eager_until = asyncio.get_running_loop().time() + EAGER_S

    async def _linger(self) -> None:
        loop = asyncio.get_running_loop()
        if self._left >= self._batch:
            # A lot for each read of the socket costs more, and so does an event for each message.
            while len(self._buffer) < self._batch and self._pull.attached.is_set():  # noqa: ASYNC110
                await asyncio.sleep(GATHER_S)
        elif self._linger_s and self.caught_up.is_set() and loop.time() > self._eager_until:
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(self._linger_s):
                    await self._hurried.wait()
        else:
            await asyncio.sleep(0)  # a reply that came with it goes first: somebody does wait for that
        self._hurried.clear()

    async def _handle(self) -> None:
        while True:
            await self._arrived.wait()
            await self._linger()
            self._arrived.clear()
            while self._buffer:
                taken = self._buffer[: self._batch]
                del self._buffer[: len(taken)]
                decode = self._decode
                await self._handle_batch(taken if decode is None else [decode(data, seq) for seq, data in taken])  # type: ignore[arg-type]
                self.seq, _ = taken[-1]
                self._handled += len(taken)
                await self._pull.ask(len(self._buffer))
                self._look()
            self._look()

    def _look(self) -> None:
        """Caught up: as much is handled as there was when the consumer was made, or nothing more is to come."""
        if (self._left >= 0 and self._handled >= self._goal) or (self._left == 0 and not self._buffer):
            self.caught_up.set()


def _report_end(task: asyncio.Task[None]) -> None:
    if not task.cancelled() and task.exception() is not None:
        log.error("tail.ended", task=task.get_name(), exc_info=task.exception())


CommitTail = Tail[Commit]
