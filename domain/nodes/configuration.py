"""What operators say of a node, beside what it says of itself: labels to choose it by, and how much may be promised on it."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

from pydantic import Field, StringConstraints

from domain.kernel.aggregate import Event
from domain.nodes.placement import Overcommit

if TYPE_CHECKING:
    from domain.nodes.node import Node

NodeLabelKey = Annotated[str, StringConstraints(pattern=r"^[A-Za-z0-9][A-Za-z0-9._/-]{0,62}$")]
NodeLabels = Annotated[
    dict[NodeLabelKey, Annotated[str, StringConstraints(max_length=256, pattern=r"^[^\x00-\x1f\x7f]*$")]], Field(max_length=64)
]


class NodeConfigured(Event):
    """All of its labels and ratios, as they are from now on."""

    TOPIC = "node.configured"
    labels: dict[str, str] = {}
    overcommit: Overcommit = Overcommit()

    def apply(self, node: Node) -> None:
        node.labels = self.labels
        node.overcommit = self.overcommit
