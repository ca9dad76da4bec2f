"""Appending commits so that each is stored exactly once, whatever becomes of its acknowledgement.

A lost acknowledgement is answered by sending the same message again. One server then says "conflict", three say "duplicate"
(reference/jetstream-eventstore.md §1.1), and either may as well be about somebody else's commit: in both cases the stored message is
read from the leader, and only if it is ours, byte for byte, was the append successful.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass
from typing import Final, TypeVar

import nats.errors

from bus.direct import Reader
from bus.replies import UnansweredError
from bus.requests import ApiError, Message, Publisher, patiently
from domain.kernel.errors import Refused

T = TypeVar("T")

WRONG_LAST_SEQUENCE: Final = 10071
WRITE_IN_FLIGHT: Final = 10164
"""Another write to the subject is not yet decided; perhaps our own earlier attempt."""
DUPLICATE_IN_BATCH: Final = 10201
BATCH_INCOMPLETE: Final = 10176
"""The batch lost its first messages, for instance to a change of leader; nothing was stored."""

FIRST_PAUSE_S: Final = 0.01
LONGEST_PAUSE_S: Final = 0.25


class ConflictError(Exception):
    """Somebody else's commit stands where this one was to go. ``seqs`` are the last positions of the subjects, from the leader."""

    def __init__(self, seqs: Sequence[int]) -> None:
        super().__init__(f"the log has moved on to {list(seqs)}")
        self.seqs = list(seqs)


@dataclass(frozen=True, slots=True)
class Entry:
    """One commit to store. ``expect`` is the subject's last position, 0 if it has none."""

    subject: str
    data: bytes
    commit_id: str
    expect: int

    def message(self) -> Message:
        headers = {"Nats-Msg-Id": self.commit_id, "Nats-Expected-Last-Subject-Sequence": str(self.expect)}
        return Message(self.subject, self.data, headers)


class Appender:
    """Appends to one stream. ``patience_s`` is how long it keeps trying: an election takes 4 to 5 s (reference §1.2)."""

    def __init__(self, publisher: Publisher, reader: Reader, patience_s: float) -> None:
        self._publisher = publisher
        self._reader = reader
        self._patience_s = patience_s

    async def append(self, entries: Sequence[Entry]) -> list[int]:
        """Store all entries or none; returns their positions.

        Raises ``ConflictError``, or ``Refused``: ``bus.unavailable`` when patience ran out, ``command.too-large``.
        """
        try:
            return await self.patiently(lambda: self._once(entries))
        except nats.errors.MaxPayloadError as error:
            raise Refused("command.too-large", "the commit is larger than the bus takes") from error

    async def patiently(self, attempt: Callable[[], Awaitable[T | None]]) -> T:
        """The first result of ``attempt`` that is not None. Raises ``Refused("bus.unavailable")``, and what ``attempt`` raises for good."""

        async def once(_: float) -> T:
            result = await attempt()
            if result is None:
                raise UnansweredError("another write is under way")
            return result

        return await patiently(once, self._patience_s, pause=FIRST_PAUSE_S, longest_pause=LONGEST_PAUSE_S)

    async def _once(self, entries: Sequence[Entry]) -> list[int] | None:
        """One attempt. None: ask again."""
        try:
            if len(entries) == 1:
                ack = await self._publisher.publish(*entries[0].message())
            else:
                ack = await self._publisher.publish_batch([entry.message() for entry in entries])
        except ApiError as error:
            if error.err_code == BATCH_INCOMPLETE:
                return None
            if error.err_code not in {WRONG_LAST_SEQUENCE, WRITE_IN_FLIGHT, DUPLICATE_IN_BATCH}:
                raise
            return await self._settle(entries)
        if ack.duplicate:
            return await self._known(entries[0], ack.seq)
        return list(range(ack.seq - len(entries) + 1, ack.seq + 1))

    async def _settle(self, entries: Sequence[Entry]) -> list[int] | None:
        """Who holds the places that were refused to us?"""
        lasts = [await self._reader.leader_last(entry.subject) for entry in entries]
        seqs = [last.seq if last else 0 for last in lasts]
        if all(last is not None and last.data == entry.data for last, entry in zip(lasts, entries, strict=True)):
            return seqs
        if seqs != [entry.expect for entry in entries]:
            raise ConflictError(seqs)
        return None

    async def _known(self, entry: Entry, seq: int) -> list[int]:
        """A message with our id is stored. The same command, decided again later, has the same id and another body: that is a conflict."""
        stored = await self._reader.leader_at(seq)
        if stored is not None and stored.data == entry.data:
            return [seq]
        last = await self._reader.leader_last(entry.subject)
        raise ConflictError([last.seq if last else 0])
