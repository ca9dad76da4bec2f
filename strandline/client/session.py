"""The session: one connection, one project, one object per noun."""

from __future__ import annotations

import contextlib
from collections.abc import AsyncIterator, Mapping
from pathlib import Path
from typing import Any, Self

from bus.connection import Client, connect, connect_from
from strandline.client.artifacts import Artifacts
from strandline.client.call import Call, Calls
from strandline.client.compat import Compat
from strandline.client.disks import Disks
from strandline.client.events import Events
from strandline.client.jobs import Jobs
from strandline.client.logs import Logs
from strandline.client.nodes import Nodes
from strandline.client.pools import Pools
from strandline.client.rollouts import Rollouts
from strandline.client.sandboxes import Sandboxes
from strandline.client.snapshots import Snapshots
from strandline.client.templates import Templates
from strandline.client.views import Views


class Strandline:
    """A control plane, seen from one project.

    async with Strandline.connect("/var/lib/strandline") as s:
        made = await s.templates.create("docker://docker.io/library/python:3.12", alias="python", wait_s=300)
    """

    def __init__(self, nc: Client, *, project: str = "default", actor: str | None = None) -> None:
        self._calls = Calls(nc, project, actor=actor)
        self.templates = Templates(self._calls)
        self.jobs = Jobs(self._calls)
        self.artifacts = Artifacts(self._calls)
        self.snapshots = Snapshots(self._calls)
        self.sandboxes = Sandboxes(self._calls)
        self.nodes = Nodes(self._calls)
        self.compat = Compat(self._calls)
        self.disks = Disks(self._calls)
        self.pools = Pools(self._calls)
        self.rollouts = Rollouts(self._calls)
        self.events = Events(self._calls)
        self.logs = Logs(self._calls)
        self.views = Views(self._calls)

    @classmethod
    @contextlib.asynccontextmanager
    async def connect(
        cls,
        where: str | Path,
        *,
        project: str = "default",
        creds: str | Path | None = None,
        inbox_prefix: str | None = None,
        name: str = "strandline-client",
        timeout: float = 10,
    ) -> AsyncIterator[Self]:
        """A session with the control plane whose data directory or ``nats://`` URL is ``where``; closed at the end of the block.

        A directory's ``connect.json`` says everything; with a URL, ``creds`` and ``inbox_prefix`` are the account's. Raises
        ``Refused("bus.unavailable")`` when there is nobody after ``timeout`` seconds. A connection that is lost later is restored.
        """
        if isinstance(where, str) and "://" in where:
            nc = await connect(where, name=name, creds=creds, inbox_prefix=inbox_prefix, on_closed=_nothing, timeout=timeout)
        else:
            nc = await connect_from(Path(where), name, on_closed=_nothing, timeout=timeout)
        try:
            yield cls(nc, project=project)
        finally:
            await nc.close()

    @property
    def project(self) -> str:
        """Whose things this session sees."""
        return self._calls.project

    @property
    def seq(self) -> int:
        """The highest log position that this session's commands were told of."""
        return self._calls.seen

    async def command(self, name: str, body: Mapping[str, Any], call: Call | None = None) -> dict[str, Any]:
        """Any command by its wire name, ``noun.verb``, with a body of your own; the whole reply."""
        return await self._calls.raw_command(name, body, call or {})

    async def query(self, view: str, verb: str, body: Mapping[str, Any] | None = None) -> dict[str, Any]:
        """Any query; the whole reply."""
        return await self._calls.query(view, verb, body)


def _nothing() -> None:
    """A library must not end the process that uses it; calls say ``bus.closed`` instead."""
