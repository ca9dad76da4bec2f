"""A real agent process on a real bus, told what to do on its lane: what the control plane would be to it."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import sys
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any, Protocol, Self

from support import leftovers
from support.bus import connected
from support.unprivileged import NOBODY
from support.waiting import eventually

from agents.options import Options
from agents.purge import purge
from bus import lanes, objects
from bus.connection import Connection
from bus.reports import ReportReader
from bus.server import Server
from bus.subjects import ARTIFACTS_BUCKET
from domain.kernel.ids import sandbox_id
from domain.nodes.orders import Order, Report, ReportKind, Verb
from domain.sandboxes.spec import ArtifactRef

NODE = "n1"


class HasUrl(Protocol):
    """A server, or a way to one."""

    @property
    def url(self) -> str: ...


REPOSITORY = Path(__file__).parents[2]


@dataclass
class Installation:
    """A directory as ``strandline up`` makes it, a bus, and everything that nodes have said on it."""

    dir: Path
    nc: Connection
    artifact: ArtifactRef
    reports: list[Report] = field(default_factory=list)
    count: int = 0

    @property
    def own(self) -> Path:
        return self.dir / "nodes" / NODE

    def order(self, verb: Verb, body: dict[str, Any], *, id: str | None = None, deadline_s: float | None = 60, **more: Any) -> Order:  # noqa: A002
        self.count += 1
        now = datetime.now(UTC)
        sandbox = body.get("sandbox_id", "")
        process = "provisioning" if verb is Verb.SANDBOX_PROVISION else "sandbox"
        about = {"project": "default", "key": sandbox or "k", "process": process, "process_id": sandbox or "p", **more}
        deadline = None if deadline_s is None else now + timedelta(seconds=deadline_s)
        return Order(id=id or f"order-{self.count}", verb=verb, at=now, deadline=deadline, body=body, **about)

    async def send(self, order: Order) -> Order:
        await lanes.send(self.nc, NODE, order)
        return order

    async def tell(self, verb: Verb, body: dict[str, Any], within: float = 20, **more: Any) -> Report:
        """Send an order and wait for its end."""
        return await self.end_of(await self.send(self.order(verb, body, **more)), within)

    async def end_of(self, order: Order, within: float = 20) -> Report:
        return await self.said(lambda report: report.order == order.id and report.kind in {ReportKind.DONE, ReportKind.FAILED}, within)

    async def said(self, wanted: Callable[[Report], bool], within: float = 20) -> Report:
        return await eventually(lambda: next((report for report in self.reports if wanted(report)), None), within)

    def provision(self, name: str, *, generation: int = 0, snapshot_id: str | None = None, **recipe: Any) -> dict[str, Any]:
        """The body of an order for a sandbox that sleeps."""
        spec = {
            "template_id": "tpl-" + "0" * 24,
            "snapshot_id": snapshot_id,
            "artifact": self.artifact.model_dump(),
            "recipe": {"cmd": ["/bin/sh", "-c", "echo up; sleep 1000"], "memory_mb": 64, **recipe},
        }
        return {"sandbox_id": sandbox_id("default", name), "generation": generation, "spec": spec}


def describe(server: HasUrl, directory: Path) -> None:
    """Write ``connect.json``."""
    directory.mkdir(parents=True, exist_ok=True)
    said = {"url": server.url, "creds": None, "inbox_prefix": None, "http": None, "pids": {}}
    (directory / "connect.json").write_text(json.dumps(said))


@asynccontextmanager
async def installation(server: Server, directory: Path, ext4: Path, artifact: ArtifactRef) -> AsyncIterator[Installation]:
    """Streams, connect.json, the artifact in the object store, a reader of reports. Afterwards no trace of its node."""
    async with connected(server) as nc:
        describe(server, directory)
        await objects.put_file(nc, ARTIFACTS_BUCKET, artifact.artifact_id, ext4, sha256=artifact.sha256)
        made = Installation(directory, nc, artifact)

        async def take(report: Report) -> None:
            made.reports.append(report)

        try:
            async with ReportReader(nc, take):
                yield made
        finally:
            leftovers.remember(directory)
            await purge(Options(directory, NODE))  # no agent runs any more: what a killed one left is ours to remove


class AgentProcess:
    """``python -m agents``. ``crash_at``: where it dies by its own hand, once; ``python`` is another interpreter, run as ``nobody``."""

    def __init__(self, installation: Installation, driver: str, *arguments: str, crash_at: str = "", python: str | None = None) -> None:
        where = ["--dir", str(installation.dir), "--node", NODE, "--driver", driver]
        self._argv = [python or sys.executable, "-m", "agents", *where, *arguments]
        self._env = {**os.environ, "STRAND_CRASH_AT": crash_at}
        self._cwd: Path | None = None
        if python is not None:
            packages = (path for path in sys.path if path.endswith("site-packages"))
            self._env |= {
                "PYTHONPATH": ":".join([str(REPOSITORY), *packages]),
                "PYTHONDONTWRITEBYTECODE": "1",
                "HOME": str(installation.dir),
            }
            self._argv[:0] = ["setpriv", f"--reuid={NOBODY}", f"--regid={NOBODY}", "--clear-groups", "--"]
            self._cwd = REPOSITORY
        self._log = installation.dir / "agent.log"
        self._installation = installation
        self.process: asyncio.subprocess.Process | None = None

    async def start(self) -> None:
        with self._log.open("ab") as log:
            self.process = await asyncio.create_subprocess_exec(*self._argv, env=self._env, cwd=self._cwd, stdout=log, stderr=log)

    async def ended(self, within: float = 20) -> int:
        """Its exit code, negative for a signal."""
        assert self.process is not None
        try:
            return await asyncio.wait_for(self.process.wait(), within)
        except TimeoutError:
            raise AssertionError(f"the agent did not end; its log:\n{self.log()[-3000:]}") from None

    async def kill(self) -> None:
        """As power loss would."""
        await self._signal(signal.SIGKILL)

    async def stop(self) -> None:
        """In order."""
        await self._signal(signal.SIGTERM)

    async def _signal(self, number: int) -> None:
        if self.process is not None and self.process.returncode is None:
            self.process.send_signal(number)
            await self.ended()

    def log(self) -> str:
        return self._log.read_text()

    async def __aenter__(self) -> Self:
        await self.start()
        return self

    async def __aexit__(self, *exc: object) -> None:
        await self.kill()
