"""What operators can ask of nodes (contract.md)."""

from __future__ import annotations

from typing import Annotated, Any, ClassVar

from pydantic import Field, StringConstraints, ValidationInfo, field_validator

from domain.kernel.aggregate import Record
from domain.kernel.command import Command
from domain.kernel.ids import NodeId, RolloutId
from domain.nodes.configuration import NodeLabels
from domain.nodes.sweeps import Removal, Unremoved

Version = Annotated[str, StringConstraints(max_length=128, pattern=r"^[^\x00-\x1f\x7f]*$", strip_whitespace=True)]


class RolloutAccepted(Record):
    """``settled``: did it end within ``wait_s``? ``state``: how."""

    rollout_id: str
    state: str
    settled: bool = False


class RolloutStart(Command):
    """Have nodes upgraded, a few at a time, so that every template keeps a ready replica: drain, upgrade, make again what is stale, open.

    One of ``nodes`` and ``all``; one or more of the versions that they shall run. Upgrading the machine itself is somebody else's: now is
    the time when the view ``rollouts`` says UPGRADING. Of several rollouts the oldest is moved.
    """

    NOUN: ClassVar[str] = "rollout"
    VERB: ClassVar[str] = "start"
    EXAMPLE: ClassVar[dict[str, Any]] = {"all": True, "guest_image": "2026.12", "at_once": 2, "stop_after_s": 3600}
    RESULT: ClassVar[type[Record]] = RolloutAccepted

    nodes: Annotated[tuple[NodeId, ...], Field(max_length=1024)] = ()
    all: bool = Field(default=False, validate_default=True)
    guest_image: Version = ""
    agent: Version = ""
    kernel: Version = Field(default="", validate_default=True)
    at_once: Annotated[int, Field(ge=1, le=64)] = 1
    stop_after_s: Annotated[float, Field(ge=0, le=31 * 86_400)] | None = None

    @field_validator("all")
    @classmethod
    def _or_nodes(cls, everything: bool, info: ValidationInfo) -> bool:
        if "nodes" in info.data and everything == bool(info.data["nodes"]):
            raise ValueError("give either nodes or all: true")
        return everything

    @field_validator("kernel")
    @classmethod
    def _or_another(cls, kernel: str, info: ValidationInfo) -> str:
        if not kernel and {"guest_image", "agent"} <= info.data.keys() and not (info.data["guest_image"] or info.data["agent"]):
            raise ValueError("say which guest_image, agent or kernel the nodes shall run")
        return kernel


class RolloutCancel(Command):
    """Take up no further node, and open again the ones that are at work."""

    NOUN: ClassVar[str] = "rollout"
    VERB: ClassVar[str] = "cancel"
    EXAMPLE: ClassVar[dict[str, Any]] = {"rollout_id": "ro-000000000000000000000000"}

    rollout_id: RolloutId


class _OnNode(Command):
    """A command about one node and nothing else."""

    EXAMPLE: ClassVar[dict[str, Any]] = {"node_id": "n1"}

    node_id: NodeId


class SweepAccepted(Record):
    """``dry_run``: ``removed`` would be. ``settled``: did the node say within ``wait_s`` what came of it? Else ``removed`` is to be."""

    node_id: str
    dry_run: bool
    removed: tuple[Removal, ...]
    failed: tuple[Unremoved, ...] = ()
    kept: int = 0
    settled: bool = True


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


class NodeSweep(_OnNode):
    """Take away what is on a node and is nobody's: rests of sandboxes that the log does not know there, copies of deleted artifacts.

    Agents do it by themselves, every few minutes and every week (docs/operations.md). Nothing goes on incomplete knowledge.
    """

    NOUN: ClassVar[str] = "node"
    VERB: ClassVar[str] = "sweep"
    EXAMPLE: ClassVar[dict[str, Any]] = {"node_id": "n1", "dry_run": True}
    RESULT: ClassVar[type[Record]] = SweepAccepted

    dry_run: bool = False


Ratio = Annotated[float, Field(ge=0.1, le=64)]


class NodeConfigure(_OnNode):
    """Labels to choose a node by, all of them anew, and how many times what it has may be promised there; what is not given stays.

    ``cpu_ratio`` 0: cores without bound, as at first; the others are 1 at first. What runs already stays, also beyond a smaller ratio.
    """

    NOUN: ClassVar[str] = "node"
    VERB: ClassVar[str] = "configure"
    EXAMPLE: ClassVar[dict[str, Any]] = {"node_id": "n1", "labels": {"zone": "a"}, "cpu_ratio": 4, "memory_ratio": 1.5}

    labels: NodeLabels | None = None
    cpu_ratio: Annotated[float, Field(ge=0, le=64)] | None = None
    memory_ratio: Ratio | None = None
    sandboxes_ratio: Ratio | None = None
