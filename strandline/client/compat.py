"""Compat: does what each node holds of a template still fit what the node runs."""

from __future__ import annotations

from collections.abc import AsyncIterator, Sequence
from typing import Any, Unpack

from domain.templates.commands import CompatRescan
from strandline.client.call import Call, given, item_of
from strandline.client.items import CompatRow, CompatSummary, WhatIf
from strandline.client.noun import Noun
from strandline.client.replies import CompatRescanned


class Compat(Noun):
    """``compat.rescan`` and the view ``compat-matrix``."""

    async def rescan(self, nodes: Sequence[str] | None = None, **call: Unpack[Call]) -> CompatRescanned:
        """Ask these nodes, or all, what they run now."""
        every = None if nodes else True
        return await self._calls.command(CompatRescan, CompatRescanned, call, nodes=nodes or None, all=every)

    def list(self, *, as_of: int | str | None = None, limit: int | None = None, **filters: Any) -> AsyncIterator[CompatRow]:
        """The matrix, one row per template."""
        return self._calls.each("compat-matrix", CompatRow, {**filters, "as_of": as_of}, limit=limit)

    async def get(self, template: str, *, as_of: int | str | None = None) -> CompatRow:
        """One template's row. Raises ``template.not-found``."""
        return await self._calls.one("compat-matrix", CompatRow, "template", template, as_of)

    def what_if(self, node_id: str, *, as_of: int | str | None = None, limit: int | None = None, **asked: Any) -> AsyncIterator[WhatIf]:
        """What would become of a node's replicas if it ran other versions: ``guest_image``, ``agent``, ``kernel``; ``what_if`` filters.

        Nothing changes by asking. Raises ``node.not-found``.
        """
        where = {name: value for name, value in asked.items() if value is not None}
        return self._calls.each("compat-matrix", WhatIf, {**where, "node_id": node_id, "as_of": as_of}, limit=limit, verb="what-if")

    async def summary(self, *, as_of: int | str | None = None) -> CompatSummary:
        """How much is stale, missing or unknown."""
        return CompatSummary.model_validate(item_of(await self._calls.query("compat-matrix", "summary", given(as_of=as_of))) or {})
