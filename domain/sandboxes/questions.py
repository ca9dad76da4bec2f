"""What callers can ask of the control plane itself, beside the views: why a sandbox is where it is, or where one would go."""

from __future__ import annotations

from typing import Annotated, ClassVar, Final, Self

from pydantic import Field, StringConstraints, ValidationError, ValidationInfo, field_validator

from domain.kernel.command import Part
from domain.kernel.errors import Refused
from domain.kernel.ids import NodeId, SandboxId, SnapshotId
from domain.sandboxes.placed import Strategy
from domain.sandboxes.spec import DriverName, Labels

PLACEMENT_EXPLAIN: Final = "placement.explain"


class PlacementExplain(Part):
    """How placement judges each node now: for a sandbox that is there, or for one that would be created of a template or a snapshot.

    Nothing is created. For a sandbox that lives, what it uses itself counts as free.
    """

    NAME: ClassVar[str] = PLACEMENT_EXPLAIN

    template: Annotated[str, StringConstraints(min_length=1, max_length=64)] | None = None
    snapshot_id: SnapshotId | None = None
    sandbox_id: SandboxId | None = Field(default=None, validate_default=True)
    cpu: Annotated[float, Field(gt=0, le=256)] | None = None
    memory_mb: Annotated[int, Field(ge=16, le=1_048_576)] | None = None
    driver: DriverName | None = None
    node: NodeId | None = None
    node_labels: Labels = {}
    strategy: Strategy | None = None
    min_seq: Annotated[int, Field(ge=0)] = 0
    limit: Annotated[int, Field(ge=1, le=1000)] = 100
    cursor: NodeId | None = None

    @field_validator("sandbox_id")
    @classmethod
    def _one_of_three(cls, sandbox_id: str | None, info: ValidationInfo) -> str | None:
        given = [info.data.get("template"), info.data.get("snapshot_id"), sandbox_id]
        if sum(name is not None for name in given) != 1:
            raise ValueError("give exactly one of template, snapshot_id and sandbox_id")
        return sandbox_id

    @classmethod
    def parse(cls, body: bytes) -> Self:
        """The question in ``body``. Raises ``query.invalid`` with one detail per field."""
        try:
            return cls.model_validate_json(body or b"{}")
        except ValidationError as error:
            found = error.errors(include_url=False, include_input=False)[:20]
            fields = {".".join(str(part)[:64] for part in e["loc"]): e["msg"][:200] for e in found}
            raise Refused("query.invalid", "the query is not valid: " + ", ".join(sorted(fields)), details=fields) from None
