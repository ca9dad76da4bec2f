"""Sweeps: taking away what is on a node and is nobody's (reference/miren-sandbox.md §7.1, §7.2).

A node says what it holds, the control plane says by the log which of that is nobody's, the node takes it away and says what came of it.
Nothing is taken away on incomplete knowledge: what cannot be listed, or is not known for certain to be nobody's, stays.
"""

from __future__ import annotations

from collections.abc import Collection
from datetime import datetime, timedelta
from typing import TYPE_CHECKING, Annotated, Final, Literal

from pydantic import Field, StringConstraints

from domain.kernel.aggregate import Event, Record
from domain.kernel.text import ErrorText

if TYPE_CHECKING:
    from domain.nodes.node import Node

GRACE: Final = timedelta(minutes=3)
"""How long a sandbox has been dead before what is left of it is nobody's: its own teardown comes first (§7.1)."""
UNKNOWN_COPY: Final = timedelta(hours=24)
"""How old a copy of an artifact is that the log does not know before it is nobody's (§7.2)."""
AT_MOST: Final = 1000
"""Things that one sweep takes away; the next one goes on."""

Kind = Literal["sandbox", "artifact"]
Trigger = Literal["start", "timer", "schedule", "pressure", "command"]
"""What made the node look: its agent's start, the watchdog's timer, the weekly look at artifacts, a disk that fills up, a person."""
Why = Literal["unrecorded", "unknown", "dead", "elsewhere", "deleted"]
"""``unrecorded``: the agent's journal, written before every effect, does not have it. ``unknown``: the log does not. ``dead``: its sandbox
is, for longer than the grace. ``elsewhere``: its sandbox was placed on another node. ``deleted``: its artifact is."""
Name = Annotated[str, StringConstraints(max_length=128)]


class Holdings(Record):
    """What a node holds, listed not before ``at``: first what the host shows, then what the agent remembers.

    ``sandboxes``: those it remembers, with their conditions. ``strangers``: ids on the host that it does not remember, and where they were
    seen. ``artifacts``: copies that nothing on this node needs, with the times of their last change; None when they were not looked for.
    ``unlisted``: what could not be listed; then the rest is not all there is.
    """

    at: datetime
    trigger: Trigger
    sandboxes: dict[Name, Name] = {}
    strangers: dict[Name, tuple[Name, ...]] = {}
    artifacts: dict[Name, datetime] | None = None
    unlisted: tuple[Name, ...] = ()


class NodeList(Record):
    """Say what you hold: answered with ``Holdings``."""


class NodeSweep(Record):
    """Take these away, which you said at ``at`` that you hold. What has been changed, or is worked on, since then stays."""

    at: datetime
    trigger: Trigger
    sandboxes: Annotated[dict[Name, Why], Field(max_length=AT_MOST)] = {}
    artifacts: Annotated[dict[Name, Why], Field(max_length=AT_MOST)] = {}

    @property
    def empty(self) -> bool:
        return not self.sandboxes and not self.artifacts


class Removal(Record):
    """One thing that was taken away, or is to be, and why it was nobody's."""

    kind: Kind
    id: Name
    why: Why


class Unremoved(Removal):
    """One thing that could not be taken away. Whatever it uses, its address for one, is still taken."""

    error: ErrorText


class Swept(Record):
    """What came of a sweep. Nothing is in both lists (§7.1). ``kept``: what had been found and stays, because it changed meanwhile."""

    trigger: Trigger
    removed: Annotated[tuple[Removal, ...], Field(max_length=2 * AT_MOST)] = ()
    failed: Annotated[tuple[Unremoved, ...], Field(max_length=2 * AT_MOST)] = ()
    kept: int = 0


class NodeSwept(Event):
    """Something that was nobody's is gone, or something else than before withstands."""

    TOPIC = "node.swept"
    trigger: Trigger
    removed: tuple[Removal, ...] = ()
    failed: tuple[Unremoved, ...] = ()

    def apply(self, node: Node) -> None:
        node.withstanding = tuple(sorted(each.id for each in self.failed))


def is_news(swept: Swept, withstanding: Collection[str]) -> bool:
    """A sweep that removed nothing, and failed at the same things as the last one, is none: every event is kept for ever."""
    return bool(swept.removed) or {each.id for each in swept.failed} != set(withstanding)
