"""A node without a bus in this process: the simulator, real storage, a journal, and everything it says in a list."""

from __future__ import annotations

import asyncio
import hashlib
import shutil
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

from support.waiting import eventually

from agents.adoption import adopt
from agents.cache import Cache
from agents.crashpoints import CrashPoints
from agents.drivers.sim import Knobs, SimDriver
from agents.journal import Journal
from agents.network.netns import NoNetwork
from agents.node import Drivers, LocalNode, Settings
from agents.records import Memory
from agents.reporting import Reporter
from agents.stock import Stock
from agents.stocking import stocking
from agents.storage.all import AllRoots
from agents.storage.copies import CopyRoots
from agents.storage.disks import DiskRoots
from agents.sweeping import sweep
from agents.vault import Chunks, Vault
from agents.volumes.store import Volumes
from agents.work import Work
from domain.kernel.errors import Refused
from domain.kernel.ids import sandbox_id
from domain.nodes.orders import NodeHello, Order, Report, ReportKind, Verb, Versions
from domain.sandboxes.spec import ArtifactRef

SNAPSHOT = "snap-" + "a" * 24


class Leases(NoNetwork):
    """Addresses of a node that has no network: what the port promises of its ledger, and a knob that fails."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self.broken = False

    async def attach(self, sandbox_id: str, egress: Any = None) -> Any:
        self._path.mkdir(exist_ok=True)
        (self._path / sandbox_id).touch()
        return await super().attach(sandbox_id, egress)

    async def give(self, held: str, sandbox_id: str) -> None:
        (self._path / held).rename(self._path / sandbox_id)

    async def detach(self, sandbox_id: str) -> None:
        if self.broken:
            raise OSError(5, "told to fail")
        (self._path / sandbox_id).unlink(missing_ok=True)

    async def list(self) -> dict[str, str]:
        return {path.name: "" for path in self._path.iterdir()} if self._path.is_dir() else {}


class NoImages:
    """A node that builds nothing."""

    async def resolve(self, body: Any) -> Any:
        raise AssertionError(body)

    async def build(self, body: Any, order_id: str, tell: Any) -> Any:
        raise AssertionError(body)

    async def pack(self, root: Any, disk_mb: int, order_id: str, tell: Any) -> Any:
        raise AssertionError(root)


@dataclass
class Described:
    kind: str
    about: str
    index: int
    chunks: tuple[str, ...]


@dataclass
class SharedChunks:
    """The store that nodes share, in memory; give the same one to several."""

    contents: dict[str, bytes] = field(default_factory=dict)
    manifests: dict[tuple[str, str, str], Described] = field(default_factory=dict)

    def chunks(self) -> Chunks:
        async def missing(digests: Any) -> set[str]:
            return set(digests) - self.contents.keys()

        async def put(digest: str, content: bytes) -> int:
            assert hashlib.sha256(content).hexdigest() == digest
            self.contents[digest] = content
            return len(content)

        async def get(digest: str) -> bytes:
            if digest not in self.contents:
                raise Refused("object.not-found", digest, details={"chunk": digest})
            return self.contents[digest]

        async def describe(project: str, snapshot: str, kind: str, about: str, size: int, index: int, names: tuple[str, ...]) -> str:
            digest = hashlib.sha256("".join(names).encode()).hexdigest()
            self.manifests[project, snapshot, digest] = Described(kind, about, index, names)
            return digest

        async def described(project: str, snapshot: str, manifest: str) -> Described:
            return self.manifests[project, snapshot, manifest]

        return Chunks(missing, put, get, describe, described)


class NoAck:
    """The lane's end of an order; remembers why it was terminated."""

    reason = ""

    async def term(self, reason: str) -> None:
        self.reason = reason


class Rig:
    """``async with rig.life() as node:`` is one agent process; the next one finds what it left."""

    def __init__(self, directory: Path, ext4: Path, artifact: ArtifactRef, driver: Callable[[Path], Any] | None = None) -> None:
        self._driver = driver
        self.directory = directory
        self.ext4 = ext4
        self.artifact = artifact
        self.knobs = Knobs()
        self.now = datetime(2026, 1, 1, tzinfo=UTC)
        self.reports: list[Report] = []
        self.name = "n1"
        self.pass_on: Callable[[Report], Awaitable[Any]] | None = None
        """Also gets every report."""
        self.fetched = 0
        self.starts_waiting = 0
        self.shared = SharedChunks()
        self.hear = asyncio.Event()
        """Cleared while the bus does not answer."""
        self.hear.set()
        self.count = 0
        directory.mkdir()

    def network(self) -> Any:
        """What sandboxes get addresses from."""
        return Leases(self.directory / "leases")

    def storage(self) -> AllRoots:
        """Where their roots are."""
        return AllRoots(CopyRoots(self.directory / "storage"), DiskRoots(self.directory / "storage" / "disks"))

    @asynccontextmanager
    async def life(self, *, orderly: bool = True, resume: bool = True) -> AsyncIterator[LocalNode]:
        """From adoption to the end; ``orderly`` False: everything is cancelled where it stands, and nothing is written any more."""
        own = self.directory
        journal = Journal.open(own / "journal", Memory())
        crash = CrashPoints(own, "")
        reporter = Reporter(self.name, journal, self._hear, lambda: self.now, crash)
        self.leases = self.network()
        self.driver: Any = self._driver(own / "driver") if self._driver else SimDriver(own / "sim", knobs=self.knobs)
        self.node = node = LocalNode(
            name=self.name,
            directory=own,
            drivers=Drivers({self.driver.name: self.driver}),
            roots=self.storage(),
            network=self.leases,
            volumes=Volumes(own / "volumes", "directory"),
            cache=Cache(own / "artifacts", self._fetch),
            images=NoImages(),
            vault=Vault(self.shared.chunks()),
            journal=journal,
            reporter=reporter,
            clock=lambda: self.now,
            crash=crash,
            creating=asyncio.Semaphore(2),
            versions=lambda: Versions(guest_image="1", agent="2", kernel="3"),
            hello=self._hello,
            settings=Settings(port_wait_s=0.2),
            stock=Stock(self.starts_waiting),
        )
        self.work = Work(node)
        self.adopted = await adopt(node)
        self.complete = self.adopted.complete
        reporter.start()
        if resume:
            self.work.resume()
        stock = asyncio.create_task(stocking(node))
        try:
            yield node
        finally:
            if not orderly:
                journal.write = lambda *_: None  # a dead process writes nothing
            await self.work.close(1 if orderly else 0)
            if not orderly:
                node.stock.drop(lambda _: True)  # nor does it end what it holds
            stock.cancel()
            await asyncio.gather(stock, return_exceptions=True)
            await reporter.close(1 if orderly else 0)
            for task in list(node.watches.values()):
                task.cancel()
            await asyncio.gather(*node.watches.values(), return_exceptions=True)
            await self.driver.close()
            journal.close()

    async def _hello(self) -> NodeHello:
        raise AssertionError

    async def _hear(self, report: Report) -> None:
        await self.hear.wait()
        self.reports.append(report)
        if self.pass_on is not None:
            await self.pass_on(report)

    async def _fetch(self, artifact_id: str, path: Path, sha256: str) -> None:
        assert (artifact_id, sha256) == (self.artifact.artifact_id, self.artifact.sha256)
        self.fetched += 1
        shutil.copyfile(self.ext4, path)

    # ------------------------------------------------------------------------------------------------------------ orders

    def order(self, verb: Verb, body: dict[str, Any], *, id: str | None = None, deadline_s: float | None = 60, **more: Any) -> Order:  # noqa: A002
        self.count += 1
        sandbox = body.get("sandbox_id", "")
        about = {"project": "default", "key": sandbox or "k", "process": "x", "process_id": sandbox or "p", **more}
        deadline = None if deadline_s is None else self.now + timedelta(seconds=deadline_s)
        return Order(id=id or f"order-{self.count}", verb=verb, at=self.now, deadline=deadline, body=body, **about)

    async def send(self, order: Order) -> Report:
        """The order's end, as soon as there is one."""
        self.work.arrived(order)
        ack = NoAck()
        await self.work.handle(order, ack)
        return self.ends_of(order)[-1]

    def ends_of(self, order: Order) -> list[Report]:
        return [report for report in self.reports if report.order == order.id and report.kind in {ReportKind.DONE, ReportKind.FAILED}]

    def steps_done(self, end: Report) -> list[str]:
        """Names of the steps that were done, put together by number from everything that was told of the order."""
        steps: dict[int, dict[str, Any]] = {}
        for report in self.reports:
            if report.order == end.order and "steps" in report.body:
                steps |= dict(enumerate(report.body["steps"], report.body["first"]))
        assert sorted(steps) == list(range(len(steps))), "no gaps"
        return [step["step"] for _, step in sorted(steps.items()) if step["state"] == "done"]

    async def tell(self, verb: Verb, body: dict[str, Any], **more: Any) -> Report:
        return await self.send(self.order(verb, body, **more))

    def sandbox(self, name: str = "one") -> str:
        return sandbox_id("default", name)

    def provision(self, name: str = "one", *, generation: int = 0, snapshot_id: str | None = None, **recipe: Any) -> dict[str, Any]:
        spec = {
            "template_id": "tpl-" + "0" * 24,
            "snapshot_id": snapshot_id,
            "artifact": self.artifact.model_dump(),
            "recipe": {"cmd": ["sleep", "1000"], **recipe},
        }
        return {"sandbox_id": self.sandbox(name), "generation": generation, "spec": spec}

    async def up(self, name: str = "one", **recipe: Any) -> str:
        """A running sandbox."""
        report = await self.tell(Verb.SANDBOX_PROVISION, self.provision(name, **recipe))
        assert report.kind is ReportKind.DONE, report
        return self.sandbox(name)

    async def sweep(self) -> None:
        await sweep(self.node)

    async def eventually(self, condition: Any) -> Any:
        return await eventually(condition)

    # ------------------------------------------------------------------------------------------------------ what is there

    async def left(self) -> dict[str, set[str]]:
        """Everything on this host that belongs to sandboxes, by kind; empty when nothing is left."""
        logs = self.directory / "logs"
        found = {
            "processes": set(await self.driver.list()),
            "roots": set((await self.node.roots.list()).roots),
            "disks": set(self.node.volumes.holders()),
            "leases": set(await self.leases.list()),
            "logs": {path.name for path in logs.iterdir()} if logs.is_dir() else set(),
            "records": set(self.node.memory.sandboxes),
        }
        return {kind: names for kind, names in found.items() if names}
