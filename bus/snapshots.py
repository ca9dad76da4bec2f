"""Aggregate snapshots: a cache of the log in stream SNAPS, one message per aggregate, which may be deleted at any time.

A snapshot names the shape of its class, and is ignored by a process in which that is another one.
"""

from __future__ import annotations

import asyncio
import hashlib
import inspect
import sys
from functools import cache
from typing import Final, TypeVar, get_type_hints

import nats.errors
import orjson
import structlog
from pydantic import TypeAdapter

from bus import subjects
from bus.cache import Key, Loaded
from bus.direct import Reader
from bus.replies import UnansweredError
from bus.requests import ApiError, Publisher
from domain.kernel.aggregate import Aggregate, restore_state, take_state
from domain.kernel.command import canonical
from domain.kernel.registry import EVENTS

A = TypeVar("A", bound=Aggregate)

log = structlog.get_logger(__name__)

AT_ONCE: Final = 8
"""Snapshots being written at one time; more are not worth their load, and are left to the next occasion."""


@cache
def shape(cls: type[Aggregate]) -> str:
    """A digest of what a stored state depends on: the types of the attributes, and the code that folded events into them."""
    hints = {name: hint for name, hint in get_type_hints(cls, include_extras=True).items() if name.islower() and not name.startswith("_")}
    schemas = {name: TypeAdapter(hint).json_schema() for name, hint in hints.items()}
    modules = {cls.__module__} | {event.__module__ for topic, event in EVENTS.items() if topic.startswith(f"{cls.TOPIC}.")}
    return hashlib.sha256(canonical([schemas, [_source(module) for module in sorted(modules)]])).hexdigest()[:16]


def _source(module: str) -> str:
    try:
        return inspect.getsource(sys.modules[module])
    except OSError:
        return ""


class Snapshots:
    """Reads snapshots, and writes one after every ``every`` versions in the background. 0: never."""

    def __init__(self, publisher: Publisher, every: int) -> None:
        self._publisher = publisher
        self._reader = Reader(publisher, subjects.SNAPS)
        self._every = every
        self._writing: set[asyncio.Task[None]] = set()

    async def get(self, cls: type[A], key: Key, version: int) -> Loaded[A] | None:
        """The snapshot of ``key``, which has reached ``version``, if there is one and it fits. It is not checked against the log here."""
        if not self._every or version < self._every:
            return None
        try:
            stored = await self._reader.last(subjects.snapshot(*key))
            if stored is None:
                return None
            said = orjson.loads(stored.data)
            if said["shape"] != shape(cls):
                return None
            aggregate = restore_state(cls, key.id, said["version"], said["state"])
            return Loaded(aggregate, said["version"], said["seq"], said["head"], dict(said["commands"]))
        except (UnansweredError, ApiError, ValueError, KeyError, TypeError) as error:
            log.warning("snapshot.ignored", aggregate=key, error=repr(error))
            return None

    def consider(self, key: Key, loaded: Loaded[A], before: int) -> None:
        """Write a snapshot soon if ``loaded``, which was at version ``before``, has passed the next multiple of ``every``."""
        aggregate = loaded.aggregate
        if aggregate is None or not self._every or loaded.version // self._every == before // self._every or len(self._writing) >= AT_ONCE:
            return
        body = orjson.dumps(
            {
                "shape": shape(type(aggregate)),
                "version": loaded.version,
                "seq": loaded.seq,
                "head": loaded.head,
                "commands": loaded.commands,
                "state": take_state(aggregate),
            }
        )
        task = asyncio.create_task(self._write(key, body), name="snapshot")
        self._writing.add(task)
        task.add_done_callback(self._writing.discard)

    async def flush(self) -> None:
        """Wait until what is being written is written."""
        await asyncio.gather(*self._writing)

    async def _write(self, key: Key, body: bytes) -> None:
        try:
            await self._publisher.publish(subjects.snapshot(*key), body)
        except (UnansweredError, ApiError, nats.errors.Error) as error:
            log.warning("snapshot.not-written", aggregate=key, bytes=len(body), error=repr(error))
