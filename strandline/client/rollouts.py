"""Rollouts: nodes that are to run other versions, a few at a time."""

from __future__ import annotations

from collections.abc import AsyncIterator, Sequence
from typing import Any, Unpack

from domain.nodes.commands import RolloutCancel, RolloutStart
from strandline.client.call import Call
from strandline.client.items import Rollout
from strandline.client.noun import Noun
from strandline.client.replies import Accepted, RolloutAccepted


class Rollouts(Noun):
    """``rollout.*`` and the view ``rollouts``. They belong to the installation, as nodes do."""

    async def start(
        self,
        nodes: Sequence[str] | None = None,
        *,
        guest_image: str | None = None,
        agent: str | None = None,
        kernel: str | None = None,
        at_once: int | None = None,
        stop_after_s: float | None = None,
        **call: Unpack[Call],
    ) -> RolloutAccepted:
        """Have these nodes, or all, upgraded so that every template keeps a ready replica. Say what they shall run then."""
        return await self._calls.command(
            RolloutStart,
            RolloutAccepted,
            call,
            nodes=nodes or None,
            all=None if nodes else True,
            guest_image=guest_image,
            agent=agent,
            kernel=kernel,
            at_once=at_once,
            stop_after_s=stop_after_s,
        )

    async def cancel(self, rollout_id: str, **call: Unpack[Call]) -> Accepted:
        """Take up nothing more, and open again what it was at."""
        return await self._calls.command(RolloutCancel, Accepted, call, rollout_id=rollout_id)

    async def get(self, rollout_id: str, *, as_of: int | str | None = None) -> Rollout:
        """One rollout. Raises ``rollout.not-found``."""
        return await self._calls.one("rollouts", Rollout, "rollout", rollout_id, as_of)

    def list(self, *, as_of: int | str | None = None, limit: int | None = None, **filters: Any) -> AsyncIterator[Rollout]:
        """Rollouts whose fields equal the filters."""
        return self._calls.each("rollouts", Rollout, {**filters, "as_of": as_of}, limit=limit)
