"""The commit envelope: the 1..n events that one command caused in one aggregate, as one JSON object in one message (design.md §3).

``hash`` is SHA-256 over the canonical body without ``hash``; ``prev`` is the hash of the aggregate's previous commit, or 64 zeros. Whoever
changes one stored byte breaks the chain at that commit, or at the next one.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from functools import lru_cache
from typing import Any, Final

import orjson

from domain.kernel.aggregate import Event
from domain.kernel.command import Cause, canonical
from domain.kernel.registry import decode_event

GENESIS: Final = "0" * 64
"""``prev`` of an aggregate's first commit."""
RECENT: Final = 64
"""Commits that are kept as they were decoded: several in one process read what was stored last."""


class Corrupt(Exception):  # noqa: N818 - what the log is, not a malfunction of ours
    """A stored commit is not what was written. The message names the commit and what is wrong with it."""


@dataclass(frozen=True, slots=True)
class Commit:
    """A decoded envelope. ``seq`` is its position in the log; 0 while it is not stored."""

    commit: str
    command: str
    digest: str
    cause: str | None
    actor: str
    project: str
    type: str
    id: str
    time: datetime
    trace: str | None
    prev: str
    hash: str
    events: tuple[dict[str, Any], ...]
    reply: dict[str, Any] | None = None
    seq: int = 0

    @property
    def version(self) -> int:
        """The aggregate's version after this commit."""
        return int(self.events[-1]["version"])

    def decoded(self) -> Iterator[Event]:
        """The events as objects of the domain, upcast. Raises ``LookupError`` for events this version does not know."""
        for e in self.events:
            yield decode_event(self.id, self.type, self.time, e["type"], e["schema"], e["version"], e["data"])


def encode(
    kind: str, identifier: str, events: Sequence[Event], cause: Cause, prev: str, reply: dict[str, Any] | None = None
) -> tuple[bytes, str, str]:
    """The stored body, its commit id and its hash. The same command, aggregate and version always give the same commit id."""
    first = events[0].originator_version
    commit_id = _commit_id(cause.project, kind, identifier, first, cause.command)
    body: dict[str, Any] = {
        "commit": commit_id,
        "command": cause.command,
        "digest": cause.digest,
        "actor": cause.actor,
        "project": cause.project,
        "type": kind,
        "id": identifier,
        "time": cause.at.astimezone(UTC),
        "prev": prev,
        "events": [{"type": e.TOPIC, "schema": e.class_version, "version": e.originator_version, "data": e.data()} for e in events],
    }
    if cause.event is not None:
        body["cause"] = cause.event
    if cause.trace is not None:
        body["trace"] = cause.trace
    if reply:
        body["reply"] = reply
    digest = hashlib.sha256(canonical(body)).hexdigest()
    body["hash"] = digest
    return canonical(body), commit_id, digest


def _commit_id(project: str, kind: str, identifier: str, version: int, command: str) -> str:
    return hashlib.sha256(f"{project}\0{kind}\0{identifier}\0{version}\0{command}".encode()).hexdigest()[:32]


@lru_cache(RECENT)
def decode(data: bytes, seq: int = 0) -> Commit:
    """The commit in a stored message, shared by all who read it. Raises ``Corrupt`` when it is none; hashes are checked by ``verify``."""
    try:
        body = orjson.loads(data)
        return Commit(
            commit=body["commit"],
            command=body["command"],
            digest=body["digest"],
            cause=body.get("cause"),
            actor=body["actor"],
            project=body["project"],
            type=body["type"],
            id=body["id"],
            time=datetime.fromisoformat(body["time"]),
            trace=body.get("trace"),
            prev=body["prev"],
            hash=body["hash"],
            events=tuple(body["events"]),
            reply=body.get("reply"),
            seq=seq,
        )
    except (orjson.JSONDecodeError, KeyError, TypeError, ValueError) as error:
        raise Corrupt(f"message {seq} is not a commit: {error!r}") from error


def verify(data: bytes, seq: int, prev: str) -> Commit:
    """Decode and check hash, link and contiguous versions. Raises ``Corrupt`` naming the place."""
    commit = decode(data, seq)
    body = orjson.loads(data)
    stated = body.pop("hash")
    where = f"commit {commit.commit} of {commit.type} {commit.id} (message {seq})"
    if hashlib.sha256(canonical(body)).hexdigest() != stated:
        raise Corrupt(f"{where}: its content does not match its hash")
    if commit.prev != prev:
        raise Corrupt(f"{where}: it does not follow the commit before it")
    versions = [e["version"] for e in commit.events]
    if versions != list(range(versions[0], versions[0] + len(versions))):
        raise Corrupt(f"{where}: versions {versions} are not contiguous")
    return commit
