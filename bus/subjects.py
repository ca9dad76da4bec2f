"""Every subject of the bus, in one place (design.md §3). The literal stands above the function that makes it.

Arguments are ids and names that were checked at the edge: each is one token. A token with a ``.``, ``*``, ``>`` or space is a bug
and raises ``ValueError``, so that user input never widens a subject.
"""

from __future__ import annotations

import re
from typing import Final, NamedTuple

_TOKEN: Final = re.compile(r"[A-Za-z0-9_-]{1,128}")

EVENTS: Final = "EVENTS"
SNAPS: Final = "SNAPS"
SUBMIT: Final = "SUBMIT"
OUTCOME: Final = "OUTCOME"
RECEIPTS: Final = "RECEIPTS"
REPORTS: Final = "REPORTS"
LOGS: Final = "LOGS"
TIMERS: Final = "TIMERS"
DEAD: Final = "DEAD"
CHUNKS: Final = "CHUNKS"
NODES_BUCKET: Final = "NODES"
LEASES_BUCKET: Final = "LEASES"
ARTIFACTS_BUCKET: Final = "artifacts"

ALL_EVENTS: Final = "strand.evt.>"
ALL_SNAPS: Final = "strand.snap.>"
ALL_SUBMITTED: Final = "strand.v1.submit.>"
ALL_OUTCOMES: Final = "strand.v1.outcome.>"
ALL_RECEIPTS: Final = "strand.receipt.>"
ALL_REPORTS: Final = "strand.rpt.>"
ALL_LOGS: Final = "strand.log.>"
ALL_USAGE: Final = "strand.usage.*.*"
ALL_IDENTITY: Final = "strand.identity.*"
ALL_TIMERS: Final = "strand.timer.>"
ALL_DUE: Final = "strand.due.>"
ALL_DEAD: Final = "strand.dead.*.*.*"
ALL_CHUNKS: Final = "strand.chunk.*"
ALL_MANIFESTS: Final = "strand.manifest.*.*.*"


def token(value: str) -> str:
    """``value``, if it is exactly one subject token."""
    if not _TOKEN.fullmatch(value):
        raise ValueError(f"not a subject token: {value!r}")
    return value


# strand.v1.cmd.<project>.<noun>.<verb>
def command(project: str, noun: str, verb: str) -> str:
    return f"strand.v1.cmd.{token(project)}.{noun}.{verb}"


# strand.v1.submit.<project>.<noun>.<verb>
def submit(project: str, noun: str, verb: str) -> str:
    return f"strand.v1.submit.{token(project)}.{noun}.{verb}"


# strand.v1.outcome.<project>.<command id>
def outcome(project: str, command_id: str) -> str:
    return f"strand.v1.outcome.{token(project)}.{token(command_id)}"


# strand.receipt.<project>.<command id>
def receipt(project: str, command_id: str) -> str:
    return f"strand.receipt.{token(project)}.{token(command_id)}"


# strand.v1.qry.<project>.<view>.<verb>
def query(project: str, view: str, verb: str) -> str:
    return f"strand.v1.qry.{token(project)}.{view}.{verb}"


# strand.evt.<project>.<type>.<id>
def event(project: str, kind: str, identifier: str) -> str:
    return f"strand.evt.{token(project)}.{token(kind)}.{token(identifier)}"


# strand.evt.<project>.<type>.*   strand.evt.*.<type>.*
def events_of(kind: str, project: str = "*") -> str:
    return f"strand.evt.{project}.{token(kind)}.*"


# strand.snap.<type>.<id>, with the project before the id because ids such as aliases are unique only in their project
def snapshot(project: str, kind: str, identifier: str) -> str:
    return f"strand.snap.{token(kind)}.{token(project)}.{token(identifier)}"


# strand.lane.<node>.<verb>
def lane(node: str, verb: str) -> str:
    return f"strand.lane.{token(node)}.{token(verb)}"


# strand.lane.<node>.*
def lane_of(node: str) -> str:
    return f"strand.lane.{token(node)}.*"


# strand.rpt.<node>.<kind>
def report(node: str, kind: str) -> str:
    return f"strand.rpt.{token(node)}.{token(kind)}"


# strand.hb.<node>
def heartbeat(node: str) -> str:
    return f"strand.hb.{token(node)}"


# strand.log.<project>.<sandbox>.<stdout|stderr|runtime>
def log(project: str, sandbox: str, stream: str) -> str:
    return f"strand.log.{token(project)}.{token(sandbox)}.{token(stream)}"


# strand.usage.<node>.<part>
def usage(node: str, part: int) -> str:
    return f"strand.usage.{token(node)}.{part}"


# strand.identity.<node>
def identity(node: str) -> str:
    return f"strand.identity.{token(node)}"


# strand.timer.<project>.<type>.<id>.<name>
def timer(project: str, kind: str, identifier: str, name: str) -> str:
    return f"strand.timer.{token(project)}.{token(kind)}.{token(identifier)}.{token(name)}"


# strand.due.<project>.<type>.<id>.<name>
def due(project: str, kind: str, identifier: str, name: str) -> str:
    return f"strand.due.{token(project)}.{token(kind)}.{token(identifier)}.{token(name)}"


# strand.dead.<node, or _control>.<stream>.<sequence>
def dead(owner: str, stream: str, seq: int) -> str:
    return f"strand.dead.{token(owner)}.{token(stream)}.{seq}"


# strand.chunk.<sha256>
def chunk(digest: str) -> str:
    return f"strand.chunk.{_one_or_any(digest)}"


# strand.manifest.<project>.<snapshot>.<sha256>
def manifest(project: str, owner: str, digest: str) -> str:
    return f"strand.manifest.{_one_or_any(project)}.{_one_or_any(owner)}.{_one_or_any(digest)}"


def _one_or_any(value: str) -> str:
    return value if value == "*" else token(value)


class EventAddress(NamedTuple):
    """Which aggregate a commit belongs to."""

    project: str
    kind: str
    id: str


def parse_event(subject: str) -> EventAddress:
    """The address in ``strand.evt.<project>.<type>.<id>``. Raises ``ValueError`` for any other subject."""
    parts = subject.split(".")
    if len(parts) != 5 or parts[:2] != ["strand", "evt"]:
        raise ValueError(f"not an event subject: {subject!r}")
    return EventAddress(*parts[2:])
