"""Proving that the log is what was written: no message missing, every aggregate's chain unbroken (design.md §10, promise 2).

A finding names the place and does not end the check: after it, the aggregate's chain is taken up again where it stands.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field

from nats.aio.client import Client

from bus import subjects
from bus.commit import GENESIS, Commit, Corrupt, decode, verify
from bus.direct import Reader, Stored
from bus.fast import open_publisher


@dataclass(frozen=True, slots=True)
class Finding:
    """What is wrong with the message at ``seq``."""

    seq: int
    subject: str
    what: str


@dataclass(slots=True)
class Verdict:
    """What was checked, up to position ``seq``, and what was found."""

    commits: int = 0
    events: int = 0
    aggregates: int = 0
    seq: int = 0
    findings: list[Finding] = field(default_factory=list)

    @property
    def ok(self) -> bool:
        return not self.findings


class Verifier:
    """Checks messages one after the other. ``gapless``: positions must follow each other, as they do in the whole log."""

    def __init__(self, *, gapless: bool = True) -> None:
        self._gapless = gapless
        self._ends: dict[str, tuple[int, str]] = {}
        self._commands: dict[str, set[str]] = {}
        self.verdict = Verdict()

    def check(self, message: Stored) -> None:
        """Look at the next message."""
        verdict = self.verdict
        if self._gapless and message.seq != verdict.seq + 1:
            self._find(message, f"messages {verdict.seq + 1} to {message.seq - 1} are missing")
        verdict.seq = message.seq
        version, head = self._ends.get(message.subject, (0, GENESIS))
        try:
            commit = verify(message.data, message.seq, head)
        except Corrupt as error:
            self._find(message, str(error))
            standing = _as_it_stands(message)
            if standing is None:
                return
            commit = standing
        else:
            self._compare(message, commit, version)
        if message.subject not in self._ends:
            verdict.aggregates += 1
        self._ends[message.subject] = (commit.version, commit.hash)
        verdict.commits += 1
        verdict.events += len(commit.events)

    def _compare(self, message: Stored, commit: Commit, version: int) -> None:
        """What a commit's own hash cannot say: that it stands in its place, once."""
        if commit.events[0]["version"] != version + 1:
            self._find(message, f"version {commit.events[0]['version']} follows version {version}")
        if message.subject != subjects.event(commit.project, commit.type, commit.id):
            self._find(message, f"it belongs to {commit.type} {commit.id} of {commit.project}")
        commands = self._commands.setdefault(message.subject, set())
        if commit.command in commands:
            self._find(message, f"command {commit.command} acted before")
        commands.add(commit.command)

    def _find(self, message: Stored, what: str) -> None:
        self.verdict.findings.append(Finding(message.seq, message.subject, what))


def _as_it_stands(message: Stored) -> Commit | None:
    try:
        commit = decode(message.data, message.seq)
    except Corrupt:
        return None
    return commit if commit.events else None


def verify_messages(messages: Iterable[Stored], *, gapless: bool = True) -> Verdict:
    """Check messages from an export or a backup."""
    verifier = Verifier(gapless=gapless)
    for message in messages:
        verifier.check(message)
    return verifier.verdict


async def verify_log(nc: Client, *, project: str | None = None, kind: str | None = None, id: str | None = None) -> Verdict:  # noqa: A002
    """Check the log, or the part of it that belongs to a project, a type of aggregate or one aggregate."""
    subject = ".".join(["strand.evt", *[subjects.token(part) if part else "*" for part in (project, kind, id)]])
    everything = project is kind is id is None
    publisher = open_publisher(nc)
    reader = Reader(publisher, subjects.EVENTS)
    verifier = Verifier(gapless=everything)
    try:
        async for message in reader.all(subjects.ALL_EVENTS if everything else subject):
            verifier.check(message)
    finally:
        await reader.close()
        await publisher.close()
    return verifier.verdict
