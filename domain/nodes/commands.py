"""What operators can ask of nodes (contract.md)."""

from __future__ import annotations

from typing import Annotated, Any, ClassVar

from pydantic import Field, StringConstraints

from domain.kernel.command import Command
from domain.kernel.ids import NodeId


class _OnNode(Command):
    """A command about one node and nothing else."""

    EXAMPLE: ClassVar[dict[str, Any]] = {"node_id": "n1"}

    node_id: NodeId


class NodeEnroll(_OnNode):
    """Let a machine be a node. An evicted one may come back by this."""

    NOUN: ClassVar[str] = "node"
    VERB: ClassVar[str] = "enroll"

    note: Annotated[str, StringConstraints(max_length=256)] = ""


class NodeEvict(_OnNode):
    """Send a node away: it is disconnected, and refused from now on."""

    NOUN: ClassVar[str] = "node"
    VERB: ClassVar[str] = "evict"


class NodeCordon(_OnNode):
    """No new sandboxes there; what runs goes on."""

    NOUN: ClassVar[str] = "node"
    VERB: ClassVar[str] = "cordon"


class NodeUncordon(_OnNode):
    """New sandboxes may go there again."""

    NOUN: ClassVar[str] = "node"
    VERB: ClassVar[str] = "uncordon"


class NodeDrain(_OnNode):
    """No new sandboxes there, and those that run shall go: by themselves, or stopped when ``stop_after_s`` is over."""

    NOUN: ClassVar[str] = "node"
    VERB: ClassVar[str] = "drain"

    stop_after_s: Annotated[float, Field(ge=0, le=31 * 86_400)] | None = None
