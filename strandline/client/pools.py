"""Pools: sandboxes of a template that are kept running, so that a create is a hand-over."""

from __future__ import annotations

from collections.abc import AsyncIterator
from typing import Any, Unpack

from domain.sandboxes.pool_commands import PoolDelete, PoolSet
from strandline.client.call import Call
from strandline.client.items import Pool
from strandline.client.noun import Noun
from strandline.client.replies import PoolState


class Pools(Noun):
    """``pool.*`` and the view ``pools``. A template has one pool at most."""

    async def set(
        self,
        template: str,
        *,
        desired: int | None = None,
        maximum: int | None = None,
        warm: bool | None = None,
        idle_s: float | None = None,
        **call: Unpack[Call],
    ) -> PoolState:
        """Keep so many running; what is None stays, or is a new pool's default. ``idle_s`` -1: however long nobody uses them."""
        return await self._calls.command(
            PoolSet, PoolState, call, template=template, desired=desired, maximum=maximum, warm=warm, idle_s=idle_s
        )

    async def delete(self, template: str, **call: Unpack[Call]) -> PoolState:
        """Stop what waits in it. Raises ``pool.not-found``."""
        return await self._calls.command(PoolDelete, PoolState, call, template=template)

    async def get(self, template: str, *, as_of: int | str | None = None) -> Pool:
        """The pool of a template. Raises ``pool.not-found``."""
        return await self._calls.one("pools", Pool, "pool", template, as_of)

    def list(self, *, as_of: int | str | None = None, limit: int | None = None, **filters: Any) -> AsyncIterator[Pool]:
        """Pools whose fields equal the filters; gone ones too."""
        return self._calls.each("pools", Pool, {**filters, "as_of": as_of}, limit=limit)
