"""Connections: nats-py's client, told never to give up and watched from outside.

nats-py gives up after two minutes, notices a dead peer after four, and its read loop can die while ``is_connected`` stays true
(reference/jetstream-eventstore.md §4, pitfalls 5 and 6). Here it reconnects for ever, pings often, a watchdog forces a reconnect when
nothing is read any more, and a connection that is closed without anybody asking ends the process, whose supervisor starts it again.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import ssl
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any, Final, Self

import nats.errors
import structlog
from nats.aio.client import Client
from nats.aio.msg import Msg
from nats.aio.subscription import Subscription
from nats.aio.transport import TcpTransport

from bus.cancelling import heeding_cancellation
from bus.headers import header_lines, parse_headers
from bus.parser import MessageParser, Take, hand_over
from bus.replies import NobodyError, Replies, UnansweredError
from domain.kernel.errors import Refused

__all__ = ["Client", "Connection", "connect", "connect_from"]

log = structlog.get_logger(__name__)

RECONNECT_WAIT_S: Final = 0.25
PING_S: Final = 5
WATCH_S: Final = 5.0
"""How often the read loop is checked, and how long it may take to answer."""
PENDING_BYTES: Final = 64 << 20
"""Outgoing bytes kept while there is no server."""
LOT: Final = 16
"""As many writes do not wait for more: the server may begin with them."""
TOGETHER: Final = 64
"""How many writes at most go out with others after some of a turn turned out not to be alone: twice as many as those."""
EXIT_CODE: Final = 75
"""EX_TEMPFAIL: start me again."""


class Connection(Client):
    """A client that knows whether its end was wanted, with a watchdog for its read loop."""

    def __init__(self) -> None:
        super().__init__()
        self._wanted = False
        self._watchdog: asyncio.Task[None] | None = None
        self._listeners: list[Callable[[], None]] = []
        self._reported: set[str] = set()
        self._direct: dict[int, Take] = {}
        self._ps = MessageParser(self, self._direct, self._process_msg)
        self._written = False
        self._together = 0
        self.replies: Replies | None = None
        """None where nats-py's internals are not as known: then requests go its own way."""

    async def open_replies(self) -> None:
        """Make requests fast, if that works with the nats-py that is installed."""
        replies = Replies(self)
        try:
            self.replies = await replies.start()
        except (AttributeError, TypeError, UnansweredError) as error:
            log.warning("connection.slow-requests", error=repr(error))
            await replies.close()

    async def request(
        self, subject: str, payload: bytes = b"", timeout: float = 0.5, old_style: bool = False, headers: dict[str, Any] | None = None
    ) -> Msg:
        """As nats-py's, faster, and a cancellation is never dropped. What is asked while there is no server is sent when there is one."""
        if self.replies is None or old_style or not self.is_connected:
            return await self._request_slowly(subject, payload, timeout, old_style, headers)
        try:
            reply = await self.replies.exchange(subject, payload, headers, timeout)
        except NobodyError:
            raise nats.errors.NoRespondersError from None
        except UnansweredError as error:
            if self.is_closed:
                raise nats.errors.ConnectionClosedError from None
            raise nats.errors.TimeoutError(error.message) from None
        return Msg(self, "", "", reply.data, parse_headers(reply.headers) or None)

    async def _request_slowly(self, subject: str, payload: bytes, timeout: float, old_style: bool, headers: dict[str, Any] | None) -> Msg:
        with heeding_cancellation():
            return await super().request(subject, payload, timeout, old_style, headers)

    async def subscribe_directly(self, subject: str, take: Take, queue: str = "") -> Subscription:
        """Hand messages to ``take`` in the read loop, without nats-py's queue and task for each.

        That halves the cost of a message (reference/jetstream-eventstore.md §3.3). ``take`` must not wait; what it raises is logged.
        """
        self._direct[self._sid + 1] = take  # before the first message can come
        return await self.subscribe(subject, queue=queue)

    def write_now(self) -> bool:
        """Write what is pending, once in a turn of the event loop: what is alone goes out at once, the rest goes out together.

        False: left to nats-py's own task, which also waits for a socket that takes no more.
        """
        if len(self._pending) < LOT:
            if self._together:
                self._together -= 1
                return False
            if self._written:
                return False
        return self._write_pending()

    def _write_pending(self) -> bool:
        transport = self._transport
        if not self.is_connected or not isinstance(transport, TcpTransport) or transport._io_writer is None:  # noqa: SLF001
            return False
        try:
            if transport._io_writer.transport.get_write_buffer_size():  # noqa: SLF001 - nats-py has no public name for it
                return False
            if self._pending:
                transport.writelines(self._pending)  # type: ignore[no-untyped-call]  # nats-py left this one unannotated
        except (OSError, RuntimeError):  # uvloop says RuntimeError of a closed socket; whoever reads from it is about to find out
            return False
        if self._pending:
            self._written = True
            asyncio.get_running_loop().call_soon(self._next_turn)
            self._pending, self._pending_data_size = [], 0
        return True

    def _next_turn(self) -> None:
        """More was to be written in that turn: what comes now will not be alone either, and two ways out cost more than one."""
        self._written = False
        self._together = min(TOGETHER, 2 * len(self._pending))

    async def _send_ping(self, future: asyncio.Future[Any] | None = None) -> None:
        """nats-py writes a ping past what is pending, so that its answer would prove nothing about that; ``flush`` stands on it."""
        self._write_pending()
        await super()._send_ping(future)

    async def _flush_pending(self, force_flush: bool = False) -> Any:
        if force_flush or not self.write_now():
            with heeding_cancellation():
                return await super()._flush_pending(force_flush)
        return None

    async def flush(self, timeout: int = 10) -> None:
        """Returns when everything written before is with the server. Raises nats-py's ``FlushTimeoutError``, ``ConnectionClosedError``."""
        with heeding_cancellation():
            await super().flush(timeout)

    def _remove_sub(self, sid: int, max_msgs: int = 0) -> None:
        self._direct.pop(sid, None)
        super()._remove_sub(sid, max_msgs)

    async def _process_msg(self, sid: int, subject: bytes, reply: bytes, data: bytes, headers: bytes) -> None:
        take = self._direct.get(sid)
        if take is None:
            await super()._process_msg(sid, subject, reply, data, headers)
            return
        hand_over(take, subject, reply, data, headers)

    def on_reconnect(self, listener: Callable[[], None]) -> Callable[[], None]:
        """Call ``listener`` after every reconnect, when what was under way on the old socket is lost. Returns how to stop that."""
        self._listeners.append(listener)
        return lambda: self._listeners.remove(listener)

    def tell_reconnected(self) -> None:
        """Tell all listeners."""
        self._reported.clear()
        for listener in list(self._listeners):
            listener()

    def watch(self, every_s: float) -> None:
        """Start the watchdog."""
        self._watchdog = asyncio.create_task(self._watch(every_s), name="connection watchdog")

    async def _watch(self, every_s: float) -> None:
        while not self.is_closed:
            await asyncio.sleep(every_s)
            if not self.is_connected:
                self._keep_reconnecting()
                continue
            try:
                async with asyncio.timeout(every_s):
                    await self.rtt()  # flush() will not do: it has a way round a dead read loop
            except Exception as error:  # noqa: BLE001 - uvloop raises RuntimeError of a closed socket; whatever it is, this must go on
                if self.is_connected:
                    log.warning("connection.read-loop-dead", server=str(self.connected_url), error=repr(error)[:300])
                    await self.force_reconnect()

    def _keep_reconnecting(self) -> None:
        """nats-py's reconnecting ends with the first exception that it does not expect, and the client then waits for ever."""
        task = self._reconnection_task
        if self.is_closed or task is None or not task.done():
            return
        error = None if task.cancelled() else task.exception()
        log.warning("connection.reconnecting-again", error=repr(error)[:300])
        self._status = Client.RECONNECTING
        self._ps.reset()
        self._reconnection_task = asyncio.create_task(self._attempt_reconnect())

    @property
    def end_was_wanted(self) -> bool:
        """True once ``close``, ``drain`` or the end of a ``with`` block was asked for."""
        return self._wanted

    def _end(self) -> None:
        self._wanted = True
        if self._watchdog is not None:
            self._watchdog.cancel()

    def _build_message(self, sid: int, subject: bytes, reply: bytes, data: bytes, headers: dict[str, str] | None) -> Any:
        """Drop what is no text: any client may publish such a subject or reply, and nats-py's read loop would die of it."""
        try:
            return super()._build_message(sid, subject, reply, data, headers)
        except UnicodeDecodeError:
            log.warning("connection.message-dropped", subject=repr(bytes(subject))[:200])
            return None

    async def _process_headers(self, headers: bytes | None) -> dict[str, str] | None:
        """The same for a status line that is no text."""
        try:
            return await super()._process_headers(headers)
        except (UnicodeDecodeError, IndexError):
            return None

    @staticmethod
    def _parse_header_lines(raw: bytes) -> dict[str, str]:
        """nats-py looks at every character of every name, which costs more than all else that it does with a message."""
        return header_lines(raw)

    async def report(self, error: Exception) -> None:
        """nats-py's errors into the log: each once per disconnection, because every failed attempt to reconnect is one."""
        said = repr(error)[:300]
        if said not in self._reported:
            self._reported.add(said)
            log.warning("connection.error", error=said)

    async def close(self) -> None:
        self._end()
        if self.replies is not None:
            self.replies.lose(everything=True)
        if not self.is_connected:  # nats-py would write what is pending to the socket that is gone, and fail
            self._pending, self._pending_data_size = [], 0
        try:
            await super().close()
        except asyncio.CancelledError:  # of a future that nats-py waits for twice, once in the reconnecting that it has cancelled
            task = asyncio.current_task()
            if task is None or task.cancelling():
                raise

    async def drain(self) -> None:
        """Stop receiving, finish what was received, send what is pending, close."""
        self._end()
        await super().drain()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *exc: object) -> None:
        await self.close()


async def connect(
    url: str | list[str],
    *,
    name: str,
    creds: Path | str | None = None,
    inbox_prefix: str | None = None,
    on_closed: Callable[[], None] | None = None,
    tls: ssl.SSLContext | None = None,
    timeout: float | None = 10,
    watch_s: float = WATCH_S,
) -> Connection:
    """A connection to ``url`` (several: a list, or comma-separated).

    ``on_closed`` is called when the connection ends for good without anybody asking (credentials revoked); by default the process exits.
    ``timeout`` is for the first connect, in seconds; None waits for ever. Raises ``Refused("bus.unavailable")``.
    """
    client = Connection()

    async def closed() -> None:
        if not client.end_was_wanted:
            log.critical("connection.closed", name=name, error=repr(client.last_error))
            (on_closed or partial(os._exit, EXIT_CODE))()

    async def reconnected() -> None:
        log.info("connection.reconnected", name=name)
        client.tell_reconnected()

    options: dict[str, Any] = {"reconnect_time_wait": RECONNECT_WAIT_S}
    if inbox_prefix:
        options["inbox_prefix"] = inbox_prefix
    if tls is not None:
        options["tls"] = tls
    if creds is not None:
        options["user_credentials"] = str(creds)
    attempt = client.connect(
        servers=url.split(",") if isinstance(url, str) else list(url),
        name=name,
        error_cb=client.report,
        closed_cb=closed,
        reconnected_cb=reconnected,
        max_reconnect_attempts=-1,
        connect_timeout=2,
        ping_interval=PING_S,
        max_outstanding_pings=2,
        pending_size=PENDING_BYTES,
        **options,
    )
    try:
        async with asyncio.timeout(timeout):
            await attempt
            await client.open_replies()
    except (TimeoutError, OSError, nats.errors.Error) as error:
        with contextlib.suppress(Exception):
            await client.close()
        raise Refused("bus.unavailable", f"no connection to {url}: {client.last_error or error!r}", retryable=True) from error
    client.watch(watch_s)
    return client


async def connect_from(
    dir: Path | str,  # noqa: A002 - the data directory is called so everywhere
    name: str,
    *,
    on_closed: Callable[[], None] | None = None,
    timeout: float | None = 10,
) -> Connection:
    """The connection that ``connect.json`` of a data directory describes (contract.md). Raises ``Refused("bus.unavailable")``."""
    path = Path(dir) / "connect.json"
    try:
        said = json.loads(await asyncio.to_thread(path.read_text))
    except (OSError, ValueError) as error:
        raise Refused("bus.unavailable", f"{path}: {error}", retryable=True) from error
    tls = ssl.create_default_context(cafile=said["ca"]) if said.get("ca") else None
    return await connect(
        said["url"],
        name=name,
        creds=said.get("creds"),
        inbox_prefix=said.get("inbox_prefix"),
        on_closed=on_closed,
        tls=tls,
        timeout=timeout,
    )
