"""Starts in stock: what is held for the next sandbox of a kind, and for whom it has been taken (docs/adr/0023).

Bookkeeping only; ``agents.stocking`` makes and ends them. Nothing of it is written down: to the next agent they are orphans.
"""

from __future__ import annotations

import asyncio
import secrets
from collections import OrderedDict
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Final

from agents.records import SandboxRecord

KINDS: Final = 4
"""Those that were asked for last; others are let go."""
_PREFIX: Final = "waiting-"


@dataclass(frozen=True, slots=True)
class Waiting:
    """A start that is held under ``name``, made after the model of a sandbox of its kind."""

    name: str
    model: SandboxRecord


@dataclass
class Stock:
    """``size``: how many are held of each kind; 0: none at all."""

    size: int = 0
    asked: asyncio.Event = field(default_factory=asyncio.Event)
    """Set whenever a sandbox is started: whoever waits comes first."""
    making: asyncio.Lock = field(default_factory=asyncio.Lock)
    """Held while something is made or forgotten."""
    _models: OrderedDict[str, SandboxRecord] = field(default_factory=OrderedDict)
    _waiting: dict[str, list[Waiting]] = field(default_factory=dict)
    _taken: dict[str, Waiting] = field(default_factory=dict)
    _begun: set[str] = field(default_factory=set)

    @property
    def names(self) -> frozenset[str]:
        """Of all that is held here, whoever it is for."""
        held = [*self._taken.values(), *(found for kind in self._waiting.values() for found in kind)]
        return frozenset(self._begun.union(found.name for found in held))

    def wish(self, record: SandboxRecord) -> None:
        """One like this was started: the next may be."""
        if self._serves(record):
            kind = _kind(record)
            self._models[kind] = record
            self._models.move_to_end(kind)
            self.asked.set()

    def has(self, record: SandboxRecord) -> bool:
        """Is anything held for such a sandbox?"""
        return self._serves(record) and bool(self._waiting.get(_kind(record)))

    def take(self, record: SandboxRecord) -> Waiting | None:
        """What is held for such a sandbox is this one's from now on."""
        self.asked.set()
        held = self._waiting.get(_kind(record)) if self._serves(record) else None
        if not held:
            return None
        self._taken[record.id] = found = held.pop()
        return found

    def _serves(self, record: SandboxRecord) -> bool:
        """Not what is made once, nor what has disks: those are one sandbox's at a time."""
        return self.size > 0 and not record.throwaway and not record.disks

    def taken(self, sandbox_id: str) -> Waiting | None:
        """What a sandbox has taken and not used up yet."""
        return self._taken.get(sandbox_id)

    def settle(self, sandbox_id: str) -> Waiting | None:
        """It is used up, or its to end."""
        return self._taken.pop(sandbox_id, None)

    def lacking(self) -> Iterator[SandboxRecord]:
        """Models of what there is too little of, those asked for last first."""
        for kind in list(reversed(self._models))[:KINDS]:
            if len(self._waiting.get(kind, ())) < self.size and kind in self._models:
                yield self._models[kind]

    @contextmanager
    def begun(self, found: Waiting) -> Iterator[None]:
        """While it is made, or ended, it is nobody else's business."""
        self._begun.add(found.name)
        try:
            yield
        finally:
            self._begun.discard(found.name)

    def put(self, found: Waiting) -> None:
        self._waiting.setdefault(_kind(found.model), []).append(found)

    def drop(self, unwanted: Callable[[SandboxRecord], bool]) -> list[Waiting]:
        """Forget kinds; what was held of them is the caller's to end."""
        kinds = [kind for kind, model in self._models.items() if unwanted(model)]
        for kind in kinds:
            del self._models[kind]
        return [found for kind in kinds for found in self._waiting.pop(kind, [])]

    def drop_old(self) -> list[Waiting]:
        """All but the kinds that were asked for last."""
        old = list(self._models)[:-KINDS]
        return self.drop(lambda model: _kind(model) in old)


def new_name() -> str:
    """No sandbox's id begins like that."""
    return _PREFIX + secrets.token_hex(6)


def _kind(record: SandboxRecord) -> str:
    """All that a sandbox is but its name: two of one kind differ in nothing that was there before their programs ran."""
    return f"{record.driver} {record.issuer} {record.spec.model_copy(update={'name': '', 'labels': {}}).model_dump_json()}"
