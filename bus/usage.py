"""What sandboxes use, from nodes to whoever wants to know: samples on ``strand.usage.<node>.<part>``, over core NATS (design.md §3).

Samples are no events: nothing is decided by them, the next one says it again, and the counters in them only grow, so that one which was
missed is not missed for long. A message is JSON: when it was, how often it comes, and a row of numbers per sandbox in the order of
``columns``, null for what is not known. A node with many sandboxes says it in several messages.
"""

from __future__ import annotations

import contextlib
import time
from collections.abc import AsyncGenerator, Callable, Iterator, Mapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Any, Final

import orjson
from nats.aio.client import Client
from nats.aio.msg import Msg
from nats.errors import Error as NatsError

from bus import subjects

COLUMNS: Final = ("cpu_s", "kernel_s", "cpu", "memory_bytes", "memory_peak_bytes", "swap_bytes", "swap_peak_bytes", "pids")
"""``cpu_s``: seconds of processor time since the sandbox began, ``kernel_s`` of them in the kernel; ``cpu``: cores in use just now."""
PER_MESSAGE: Final = 1000
"""Sandboxes in one message: about a hundred bytes each."""
MAX_BODY: Final = 512 * 1024
MAX_SAID: Final = 100_000
"""Messages that are remembered, of all nodes together: the last one on each subject."""
OLD: Final = 3.0
"""A message is believed until so many of its successors are overdue."""
MAX_EVERY_S: Final = 300.0

Row = Sequence[float | None]


def messages(boot: str, at: str, every_s: float, rows: Mapping[str, Row]) -> Iterator[bytes]:
    """What a node says, part by part; ``rows`` by sandbox. Nothing for no rows: what was said last grows old."""
    names = list(rows)
    for start in range(0, len(names), PER_MESSAGE):
        part = {name: rows[name] for name in names[start : start + PER_MESSAGE]}
        yield orjson.dumps({"boot": boot, "at": at, "every_s": every_s, "columns": COLUMNS, "sandboxes": part})


async def tell(nc: Client, node: str, bodies: Iterator[bytes]) -> None:
    """Say it once, if there is a connection; what nobody hears is not said later."""
    if nc.is_connected:
        with contextlib.suppress(NatsError):  # its buffer is full, or it is closed
            for part, body in enumerate(bodies):
                await nc.publish(subjects.usage(node, part), body)


@dataclass(slots=True)
class _Said:
    """The last message on a subject; read when somebody asks for it."""

    data: bytes
    heard: float
    body: Mapping[str, Any] | None = None

    def read(self) -> Mapping[str, Any]:
        if self.body is None:
            self.body, self.data = _parsed(self.data), b""
        return self.body


class Heard:
    """The last that every node has said. ``clock``: monotonic seconds."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._said: dict[str, dict[str, _Said]] = {}
        self._count = 0

    def take(self, subject: str, data: bytes) -> None:
        """A message has come. It costs next to nothing until somebody asks."""
        node, part = subject.split(".")[2:]
        parts = self._said.setdefault(node, {})
        if part not in parts:
            if self._count >= MAX_SAID:
                self._forget_old()
            if self._count >= MAX_SAID:
                return
            self._count += 1
        parts[part] = _Said(data, self._clock())

    def of(self, node: str, sandbox: str) -> dict[str, Any] | None:
        """What that node said of a sandbox, by ``COLUMNS`` and with ``at``; None when it says nothing, or not any more."""
        found = [said for said in list(self._said.get(node, {}).values()) if self._fresh(said) and sandbox in said.read()["sandboxes"]]
        if not found:
            return None
        body = max(found, key=lambda said: said.heard).read()
        return {"at": body["at"], **dict(zip(COLUMNS, body["sandboxes"][sandbox], strict=True))}

    def _fresh(self, said: _Said) -> bool:
        age = self._clock() - said.heard
        return age <= OLD * MAX_EVERY_S and age <= OLD * said.read()["every_s"]

    def _forget_old(self) -> None:
        for parts in self._said.values():
            for part in [part for part, said in parts.items() if not self._fresh(said)]:
                del parts[part]
                self._count -= 1


def _parsed(data: bytes) -> dict[str, Any]:
    """What can be believed of a message; one that is not well formed says nothing."""
    try:
        said = orjson.loads(data) if len(data) <= MAX_BODY else {}
        at, every, columns = said["at"], float(said["every_s"]), list(said["columns"])
        order = [columns.index(name) for name in COLUMNS]
        rows = {name: [_number(row[place]) for place in order] for name, row in said["sandboxes"].items()}
    except (orjson.JSONDecodeError, ValueError, KeyError, TypeError, IndexError, AttributeError):
        return {"at": "", "every_s": 0.0, "sandboxes": {}}
    return {"at": str(at)[:40], "every_s": every, "sandboxes": rows}


def _number(value: Any) -> float | None:
    return value if isinstance(value, int | float) and not isinstance(value, bool) else None


@asynccontextmanager
async def hearing(nc: Client) -> AsyncGenerator[Heard, None]:
    """Hear every node while the block runs."""
    heard = Heard()

    async def take(message: Msg) -> None:
        heard.take(message.subject, message.data)

    subscription = await nc.subscribe(subjects.ALL_USAGE, cb=take)
    try:
        yield heard
    finally:
        if not nc.is_closed:
            await subscription.unsubscribe()
