"""The front door: commands and queries as request/reply, discoverable as the nats.micro service ``strandline`` (design.md §3).

One wildcard subscription in a queue group takes every request and routes it by its subject, so that a name nobody knows gets an answer
too. Commands that another process serves (``view.rebuild``: the projector) are left to it; that one subscribes to them by name.
A request is handed to a task at once: at most ``limit`` work at the same time, ``queue`` more wait, the rest is told to come back.
"""

from __future__ import annotations

import asyncio
import contextlib
import difflib
import re
import secrets
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Collection, Coroutine, Iterable, Mapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import Any, Final, Self

import orjson
import structlog
from nats.aio.msg import Msg
from nats.aio.subscription import Subscription
from nats.errors import Error as NatsError
from nats.errors import MaxPayloadError

from bus import answers
from bus.answers import ACTOR_HEADER, CALL_ID_HEADER, COMMAND_ID_HEADER, TRACE_HEADER
from bus.connection import Client, Connection
from bus.fast import open_publisher
from bus.headers import parse_headers
from bus.micro import QUEUE, Discovery, Tally
from bus.replies import UnansweredError
from domain.kernel.command import MAX_BODY, Command
from domain.kernel.errors import Invalid, Refused
from domain.kernel.ids import COMMAND_ID, NAME_PATTERN

log = structlog.get_logger(__name__)

ORIGIN_HEADER: Final = "Nats-Request-Info"
"""Written by the server when a request crosses from one account into another; a client cannot forge it there."""

SERVICE: Final = "strandline"
VERSION: Final = "0.1.0"

_ACTOR: Final = re.compile(r"[!-~]{1,128}")
_TRACE: Final = re.compile(r"[0-9a-f]{2}-[0-9a-f]{32}-[0-9a-f]{16}-[0-9a-f]{2}")
_PROJECT: Final = re.compile(NAME_PATTERN)
_MOST_REPEATS: Final = 64


@dataclass(slots=True)
class Request:
    """A command or query as it came in. ``name`` is ``noun.verb`` or ``view.verb``; ``explicit``: the caller chose the command id."""

    project: str
    name: str
    body: bytes
    command_id: str
    explicit: bool = False
    actor: str = "local"
    trace: str | None = None
    headers: Mapping[str, str] = field(default_factory=dict)
    place: asyncio.Semaphore | None = field(default=None, repr=False)

    @asynccontextmanager
    async def waiting(self) -> AsyncIterator[None]:
        """Wrap long waits (``wait_s``): meanwhile another request may have this one's place among those that work."""
        if self.place is None:
            yield
            return
        self.place.release()
        try:
            yield
        finally:
            await self.place.acquire()


@dataclass(frozen=True, slots=True)
class Reply:
    """What is answered: the result, the id of the thing it is about, and the log position from which queries see it."""

    result: Mapping[str, Any]
    id: str | None = None
    seq: int = 0


Handler = Callable[[Request], Awaitable[Reply]]


class Endpoints:
    """All endpoints of one kind (commands, or queries) of this process. ``close`` drains."""

    def __init__(
        self, nc: Client, kind: str, handle: Handler, limit: int, queue: int, group: str = "", elsewhere: Collection[str] = ()
    ) -> None:
        if not isinstance(nc, Connection):
            raise TypeError("only our own connections hand over messages directly")
        self._nc = nc
        self._publisher = open_publisher(nc)
        self._kind = kind
        self._handle = handle
        self._places = asyncio.Semaphore(limit)
        self._most = limit + queue
        self._tasks: set[asyncio.Task[None]] = set()
        self._refusing: set[asyncio.Task[None]] = set()
        self._running: dict[tuple[str, str, bytes] | None, list[Msg]] = {}
        self._group = group
        self._elsewhere = elsewhere
        self._subscriptions: list[Subscription] = []
        self._discovery = Discovery(nc, SERVICE, VERSION, f"Strandline {'commands' if kind == 'cmd' else 'queries'}")
        self._tallies: dict[str, Tally] = {}
        self._unknown = Tally("unknown", f"strand.v1.{kind}.>")

    def announce(self, name: str, metadata: dict[str, str]) -> None:
        """Know ``noun.verb``, and show it to whoever asks."""
        self._tallies[name] = self._discovery.add(name.replace(".", "-"), f"strand.v1.{self._kind}.*.{name}", metadata)

    @property
    def busy(self) -> int:
        """How many requests are being worked on or wait for their turn."""
        return len(self._tasks)

    async def start(self) -> None:
        """Begin to take requests; when this returns the server knows of it."""
        subjects = [f"strand.v1.{self._kind}.*.{name}" for name in self._tallies] if self._group else [f"strand.v1.{self._kind}.>"]
        for subject in subjects:
            self._subscriptions.append(await self._nc.subscribe_directly(subject, self._arrived, self._group or QUEUE))
        await self._discovery.start()
        await self._nc.flush()

    async def close(self, grace: float = 10) -> None:
        """Take nothing new, finish what was begun; what is not finished after ``grace`` seconds is told to come back."""
        if self._subscriptions:
            with contextlib.suppress(NatsError):
                await self._discovery.stop()
                for subscription in self._subscriptions:
                    await subscription.drain()  # type: ignore[no-untyped-call]  # nats-py left this one unannotated
            self._subscriptions = []
        if self._tasks:
            await asyncio.wait(self._tasks, timeout=grace)
        rest = list(self._tasks)
        for task in rest:
            task.cancel()
        await asyncio.gather(*rest, return_exceptions=True)

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *exc: object) -> None:
        await self.close()

    def _arrived(self, subject: bytes, reply: bytes, data: bytes, headers: bytes | None) -> None:
        self._take(Msg(self._nc, subject.decode(), reply.decode(), data, parse_headers(headers)))

    def _take(self, message: Msg) -> None:
        if message.reply and not answers.is_inbox(message.reply):
            log.warning("endpoint.reply-refused", subject=message.subject, reply=message.reply)
            return
        if _name(message) in self._elsewhere:
            return
        repeated = self._running.get(_identity(message))
        if repeated is not None and len(repeated) < _MOST_REPEATS:
            repeated.append(message)
        elif len(self._tasks) >= self._most:
            self._spawn(self._refuse(message, Refused("bus.overloaded", "too many requests at once", retryable=True)), self._refusing)
        else:
            self._spawn(self._serve(message), self._tasks)

    @staticmethod
    def _spawn(work: Coroutine[Any, Any, None], among: set[asyncio.Task[None]]) -> None:
        task = asyncio.create_task(work)
        among.add(task)
        task.add_done_callback(among.discard)

    async def _refuse(self, message: Msg, refused: Refused) -> None:
        await self._answer([message], answers.refusal(self._id_of(message), refused), answers.error_headers(refused))

    async def _serve(self, message: Msg) -> None:
        """Work on one request, and answer it and everybody who repeated it meanwhile."""
        begun, identity, messages = time.perf_counter_ns(), _identity(message), [message]
        if identity is not None:
            self._running[identity] = messages
        refused: Refused | None = None
        try:
            data = await self._result(message)
        except asyncio.CancelledError:
            refused = Refused("bus.unavailable", "shutting down", retryable=True)
            raise
        except Refused as why:
            refused = why
        except Exception:
            reference = secrets.token_hex(6)
            log.exception("endpoint.failed", subject=message.subject, reference=reference)
            refused = Refused("internal", f"internal error {reference}; see the log of the control plane")
        finally:
            if identity is not None:
                self._running.pop(identity, None)
            took = time.perf_counter_ns() - begun
            if refused is None:
                await self._answer(messages, data)
            else:
                await self._answer(messages, answers.refusal(self._id_of(message), refused), answers.error_headers(refused))
            self._tallies.get(_name(message), self._unknown).count(took, refused.code if refused else "")

    async def _result(self, message: Msg) -> bytes:
        async with self._places:
            request = self._read(message)
            reply = await self._handle(request)
        if self._kind == "cmd":
            return answers.success(request.command_id, reply.id, reply.seq, reply.result)
        return answers.found(reply.seq, reply.result)

    def _read(self, message: Msg) -> Request:
        name = _name(message)
        if name not in self._tallies:
            raise unknown("command" if self._kind == "cmd" else "query", name, self._tallies)
        request = read_request(message.subject.split(".")[3], name, message.headers, message.data)
        request.place = self._places
        return request

    def _id_of(self, message: Msg) -> str | None:
        return (_given_id(message.headers) or "") if self._kind == "cmd" else None

    async def _answer(self, messages: list[Msg], data: bytes, headers: dict[str, str] | None = None) -> None:
        for message in messages:
            if not message.reply:
                continue
            try:
                await self._publisher.tell(message.reply, data, headers)
            except MaxPayloadError:
                large = Refused("reply.too-large", f"the reply has {len(data)} bytes; ask for less, with limit and cursor")
                await self._publisher.tell(message.reply, answers.refusal(self._id_of(message), large), answers.error_headers(large))
            except (NatsError, UnansweredError) as error:
                log.warning("endpoint.unanswered", subject=message.subject, error=repr(error))


def _name(message: Msg) -> str:
    """``noun.verb``."""
    return ".".join(message.subject.split(".")[4:])


def _identity(message: Msg) -> tuple[str, str, bytes] | None:
    """What makes two messages the same command, so that a repetition joins the first instead of running beside it."""
    given = _given_id(message.headers)
    return None if given is None else (message.subject, given, message.data)


def _given_id(headers: Mapping[str, str] | None) -> str | None:
    return headers.get(COMMAND_ID_HEADER, headers.get(CALL_ID_HEADER)) if headers else None


def unknown(what: str, name: str, known: Iterable[str]) -> Refused:
    """The refusal for a name that nobody serves, with the names that it may have been meant to be."""
    near = difflib.get_close_matches(name[:128], known, n=3, cutoff=0.5)
    return Refused(f"{what}.unknown", f"there is no {what} {name[:128]!r}", details={"nearest": near})


def read_request(project: str, name: str, headers: Mapping[str, str] | None, body: bytes, otherwise: str | None = None) -> Request:
    """The request in a message, checked as far as it can be without knowing the command. Raises ``Refused``.

    ``otherwise`` is the command id of a message that brings none; without it one is made up.
    """
    chosen = (headers or {}).get(COMMAND_ID_HEADER, otherwise)
    given = chosen if chosen is not None else (headers or {}).get(CALL_ID_HEADER)
    if not _PROJECT.fullmatch(project):
        raise Invalid("the subject names no project", {"project": f"must match {NAME_PATTERN}"})
    if given is not None and not COMMAND_ID.fullmatch(given):
        raise Invalid("the command id is not usable", {COMMAND_ID_HEADER: "1 to 64 of A-Z a-z 0-9 _ -"})
    if len(body) > MAX_BODY:
        raise Refused("command.too-large", f"the body has {len(body)} bytes; {MAX_BODY} is the limit")
    return Request(
        project=project,
        name=name,
        body=body,
        command_id=given or secrets.token_hex(16),
        explicit=chosen is not None,
        actor=_actor(headers or {}),
        trace=_trace(headers or {}),
        headers=headers or {},
    )


def _actor(headers: Mapping[str, str]) -> str:
    """Who asks: what the server says of a user of another account, or what our own, trusted connections say of theirs.

    The name that the user's JWT was given, and the user's public key, which is what tells two of that name apart.
    """
    origin = headers.get(ORIGIN_HEADER)
    if origin is not None:
        try:
            info = orjson.loads(origin)
            actor = f"{info['name_tag']}/{info['user']}"
        except (orjson.JSONDecodeError, KeyError, TypeError):
            return "unknown"
        return actor if _ACTOR.fullmatch(actor) else str(info["user"])[:128]
    claimed = headers.get(ACTOR_HEADER, "")
    return claimed if _ACTOR.fullmatch(claimed) else "local"


def _trace(headers: Mapping[str, str]) -> str | None:
    trace = headers.get(TRACE_HEADER, "")
    return trace if _TRACE.fullmatch(trace) else None


async def serve_commands(
    nc: Client,
    commands: Mapping[str, type[Command]],
    handle: Handler,
    *,
    limit: int = 256,
    queue: int = 2048,
    group: str = "",
    elsewhere: Collection[str] = (),
) -> Endpoints:
    """Serve every command of ``commands`` (``noun.verb`` -> class). ``handle`` parses the body; it runs in a task of its own.

    Without ``group`` this is the front door, which also answers for names that nobody knows, and is silent about those served
    ``elsewhere``. With it, only these commands are taken, in a queue group of that name: for another process than the control plane.
    """
    endpoints = Endpoints(nc, "cmd", handle, limit, queue, group, elsewhere)
    for name, cls in sorted(commands.items()):
        endpoints.announce(name, _describe(cls))
    await endpoints.start()
    return endpoints


async def serve_queries(
    nc: Client, views: Mapping[str, Sequence[str]], handle: Handler, *, group: str = "", elsewhere: Collection[str] = ()
) -> Endpoints:
    """Serve the verbs of every view (``{"sandboxes": ("list", "get")}``). ``group`` and ``elsewhere`` are as for commands."""
    endpoints = Endpoints(nc, "qry", handle, 256, 2048, group, elsewhere)
    for view, verbs in sorted(views.items()):
        for verb in verbs:
            endpoints.announce(f"{view}.{verb}", {"example": "{}"})
    await endpoints.start()
    return endpoints


def _describe(cls: type[Command]) -> dict[str, str]:
    schema: dict[str, Any] = {"request": cls.model_json_schema()}
    if cls.RESULT is not None:
        schema["response"] = cls.RESULT.model_json_schema()
    return {
        "help": (cls.__doc__ or "").strip().split("\n")[0],
        "example": orjson.dumps(cls.EXAMPLE).decode(),
        "schema": orjson.dumps(schema).decode(),
    }
