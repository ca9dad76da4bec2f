"""The control plane: wires handlers, processes, reports, timers and liveness to the bus. Several may run side by side.

Each one folds the whole log into its fleet index; events, reports and timers are shared out among them by durable consumers.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Final, Self

import orjson
import structlog

from bus import objects
from bus.broadcast import Broadcast
from bus.cache import Key
from bus.chunkkeeper import ChunkKeeper
from bus.client import Caller
from bus.commit import Commit, Corrupt
from bus.connection import Client
from bus.endpoints import Reply, Request, serve_commands, serve_queries
from bus.lanes import LaneKeeper
from bus.leases import Leases
from bus.receipts import Receipts
from bus.reports import ReportReader
from bus.store import Store
from bus.streams import lane_shards
from bus.subjects import ALL_EVENTS, ARTIFACTS_BUCKET
from bus.submit import SubmitWorker
from bus.subscription import DurableReader, Tail
from bus.timers import Due, DueReader
from bus.tracing import Tracing
from domain.disks import commands as disk_commands
from domain.kernel.command import Command
from domain.nodes import commands as node_commands
from domain.nodes.orders import Report
from domain.sandboxes import commands as sandbox_commands
from domain.sandboxes import pool_commands
from domain.templates import commands as template_commands
from domain.views.commands import ViewRebuild
from handlers import explaining, reports, tracing
from handlers.commands import (
    artifacts,
    cancelling,
    disks,
    execution,
    limits,
    nodes,
    pools,
    rollouts,
    sandboxes,
    snapshots,
    templates,
    waits,
)
from handlers.control import Because, Control, Deadlines, because
from handlers.dispatch import Dispatcher, Handler
from handlers.duty import Duty, Work
from handlers.fleet import Fleet
from handlers.housekeeping import Housekeeping
from handlers.liveness import Liveness
from handlers.membership import Membership
from handlers.metrics import ControlMetrics
from handlers.processes import collection, convergence, forgetting, jobs, removal, undoing
from handlers.processes import disk_leases as lease_process
from handlers.processes import disks as disk_process
from handlers.processes import nodes as node_process
from handlers.processes import pools as pool_process
from handlers.processes import rollouts as rollout_process
from handlers.processes import sandboxes as sandbox_process
from handlers.processes.concerns import concerns
from handlers.processes.runner import Processes
from handlers.results import Results
from handlers.waiting import Waiting

log = structlog.get_logger(__name__)

PATIENT: Final = frozenset({b"node"})
PATIENCE_S: Final = 0.003
"""About as long as a command takes: it is answered before its commit comes back from the log and takes the processor."""

HANDLERS: dict[type[Command], Handler] = {
    template_commands.TemplateCreate: templates.create,
    template_commands.TemplateCommit: templates.commit,
    template_commands.TemplateRedo: templates.redo,
    template_commands.TemplateAdoptBaseline: templates.adopt_baseline,
    template_commands.TemplateSetCompatPolicy: templates.set_compat_policy,
    template_commands.TemplateDelete: templates.delete,
    template_commands.ArtifactCollect: artifacts.collect,
    template_commands.ArtifactLink: artifacts.link,
    template_commands.JobCancel: cancelling.cancel,
    template_commands.CompatRescan: nodes.rescan,
    template_commands.SnapshotCreate: snapshots.create,
    template_commands.SnapshotExport: snapshots.export,
    template_commands.SnapshotDelete: snapshots.delete,
    sandbox_commands.SandboxCreate: sandboxes.create,
    sandbox_commands.SandboxPause: sandboxes.pause,
    sandbox_commands.SandboxResume: sandboxes.resume,
    sandbox_commands.SandboxUpdateLimits: limits.update,
    sandbox_commands.SandboxStop: sandboxes.stop,
    sandbox_commands.SandboxDelete: sandboxes.delete,
    sandbox_commands.SandboxRollback: snapshots.rollback,
    sandbox_commands.SandboxClone: snapshots.clone,
    sandbox_commands.SandboxSetTtl: sandboxes.set_ttl,
    sandbox_commands.SandboxWaitPort: waits.port,
    sandbox_commands.SandboxExec: execution.execute,
    sandbox_commands.SandboxAbandon: sandboxes.abandon,
    disk_commands.DiskCreate: disks.create,
    disk_commands.DiskGrow: disks.grow,
    disk_commands.DiskSnapshot: disks.snapshot,
    disk_commands.DiskDeleteSnapshot: disks.delete_snapshot,
    disk_commands.DiskDelete: disks.delete,
    disk_commands.DiskRelease: disks.release,
    pool_commands.PoolSet: pools.set_,
    pool_commands.PoolDelete: pools.delete,
    node_commands.NodeEnroll: nodes.enroll,
    node_commands.NodeEvict: nodes.evict,
    node_commands.NodeCordon: nodes.cordon,
    node_commands.NodeUncordon: nodes.uncordon,
    node_commands.NodeDrain: nodes.drain,
    node_commands.NodeSweep: nodes.sweep,
    node_commands.NodeConfigure: nodes.configure,
    node_commands.RolloutStart: rollouts.start,
    node_commands.RolloutCancel: rollouts.cancel,
}


STALLED_S = 10.0
"""How long the reading of the log may stand still while the bus is there."""

PLACES = 256
"""Commands that a control plane works on at one time."""

ELSEWHERE = frozenset({ViewRebuild.wire_name()})
"""Commands that the projector serves."""


class ControlPlane:
    """Everything that one control-plane process runs. ``start`` returns when it can be used; ``close`` drains."""

    @classmethod
    async def open(
        cls,
        nc: Client,
        *,
        deadlines: Deadlines | None = None,
        keys: Path | None = None,
        name: str = "control",
        places: int = PLACES,
        measured: bool = False,
        spans: Tracing | None = None,
    ) -> Self:
        """A control plane with a store of its own; not started yet.

        ``keys``: where the installation's authority is, if here. ``name`` tells control planes of one cluster apart. ``places``: how many
        commands work at one time; those that wait for something do not count. ``measured``: count what happens (``metrics``).
        ``spans``: make spans of commands and reports.
        """
        shards = await lane_shards(nc)
        plane = cls(nc, await Store.open(nc), deadlines or Deadlines(), Membership(nc, keys, shards), name, shards, places)
        if measured:
            plane.metrics = plane.control.metrics = ControlMetrics(plane.control.fleet, plane.control.clock)
        plane.tracing = spans
        return plane

    def __init__(
        self, nc: Client, store: Store, deadlines: Deadlines, membership: Membership, name: str, shards: int = 1, places: int = PLACES
    ) -> None:
        self._nc = nc
        self._name = name
        self._places = places
        self.metrics: ControlMetrics | None = None
        self.tracing: Tracing | None = None
        self.control = Control(
            nc=nc,
            store=store,
            fleet=Fleet(),
            waiting=Waiting(),
            results=Results(Broadcast(nc)),
            deadlines=deadlines,
            shards=shards,
        )
        pumps = {
            "job": jobs.pump,
            "sandbox": sandbox_process.pump,
            "provisioning": undoing.pump,
            "template": removal.pump_template,
            "artifact": removal.artifact_pump(self._delete_bytes),
            "snapshot": removal.pump_snapshot,
            "disk": disk_process.pump,
            "disk-lease": lease_process.pump,
            "node": node_process.pump,
            "rollout": rollout_process.pump,
            "pool": pool_process.pump,
            convergence.KIND: convergence.pump,
        }
        self.processes = Processes(self.control, pumps, concerns)
        self._receipts = Receipts(nc)
        self._dispatcher = Dispatcher(self.control, self._receipts, HANDLERS)
        self._liveness = Liveness(self.control)
        self._housekeeping = Housekeeping(self.control, (self._converge, self._collect, self._forget))
        self._membership = membership
        self._tail: Tail[Commit] = Tail(nc, 0, [ALL_EVENTS], self._fold)
        self._running = contextlib.AsyncExitStack()
        store.on_stored(self._stored)

    async def start(self) -> None:
        """Fold the log, then be ready for duty, and last of all take commands."""
        run = self._running.enter_async_context
        await self.control.results.start()
        await run(self._tail)
        await self._read_up()
        await run(LaneKeeper(self._nc, self._admits, shards=self.control.shards))
        await run(ChunkKeeper(self._nc))
        await run(Duty(Leases(self._nc), self._name, self._duties()))
        dispatcher = self._dispatcher
        handle = dispatcher.handle if self.tracing is None else tracing.commands(self.tracing, dispatcher.handle)
        handle = handle if self.metrics is None else self.metrics.timed(handle)
        endpoints = await serve_commands(self._nc, dispatcher.commands, handle, limit=self._places, elsewhere=ELSEWHERE)
        self._running.push_async_callback(endpoints.close)
        queries = await serve_queries(self._nc, explaining.QUERIES, partial(explaining.answer, self.control), group="control")
        self._running.push_async_callback(queries.close)
        log.info("control.ready", seq=self.control.fleet.seq)

    async def live(self) -> None:
        """``start``, and for ever. Raises what makes it impossible to go on, such as ``Corrupt``."""
        await self.start()
        await self._tail.wait()

    async def _read_up(self) -> None:
        """Until everything that is stored is folded. Raises ``Corrupt`` when the bus, though there, has a message and cannot deliver it."""
        ended = asyncio.ensure_future(self._tail.wait())
        caught_up = asyncio.ensure_future(self._tail.caught_up.wait())
        try:
            while not caught_up.done():
                before = self.control.fleet.seq
                done, _ = await asyncio.wait({ended, caught_up}, timeout=STALLED_S, return_when=asyncio.FIRST_COMPLETED)
                if ended in done:
                    ended.result()
                if not done and self._nc.is_connected and self.control.fleet.seq == before:
                    raise Corrupt(f"the log cannot be read beyond message {before}: strandline event verify")
        finally:
            ended.cancel()
            caught_up.cancel()

    def _duties(self) -> list[Work]:
        return [
            lambda: DurableReader(self._nc, "processes", [ALL_EVENTS], self._on_commit, patience=_patience),
            lambda: ReportReader(self._nc, self._on_report),
            lambda: DueReader(self._nc, self._on_due),
            self._liveness.watch,
            self.processes.watching,
            self._housekeeping.running,
            lambda: SubmitWorker(self._nc, self._submitted),
        ]

    async def close(self) -> None:
        """Take nothing new, finish what was begun."""
        await self._running.aclose()
        await self.processes.close()
        await self._receipts.flush()
        await self.control.store.close()

    def _stored(self, key: Key, seq: int, commit: str, trace: str | None) -> None:
        """What this process has stored need not come back from the log before it is acted upon."""
        self.control.waiting.wake(key.kind, key.project, key.id)
        self.processes.ahead((key.kind, key.project, key.id), seq, Because(commit, trace))

    async def _fold(self, commits: Sequence[Commit]) -> None:
        for commit in commits:
            if commit.seq > self.control.fleet.seq + 1:
                raise Corrupt(f"messages {self.control.fleet.seq + 1} to {commit.seq - 1} of the log are missing: strandline event verify")
            self.control.store.saw(commit)
            self.control.fleet.apply(commit)
            if self.metrics is not None:
                self.metrics.count(commit)
            self.control.waiting.notify(commit)

    async def _on_commit(self, commit: Commit) -> None:
        await self.control.fleet.reached(commit.seq)
        with because(commit.commit, commit.trace):
            await self.processes.on_commit(commit)
        await self._membership.on_commit(commit)

    async def _on_report(self, report: Report) -> None:
        if self.tracing is None or report.trace is None:
            await reports.take(self.control, report)
        else:
            await tracing.report(self.tracing, self.control, report)

    async def _submitted(self, request: Request) -> Reply:
        """A submitted command; one that another process serves is passed on to it."""
        if request.name not in ELSEWHERE:
            return await self._dispatcher.handle(request)
        body = orjson.loads(request.body or b"{}")
        reply = await Caller(self._nc, actor=request.actor).command(request.project, request.name, body, request.command_id)
        return Reply(reply["result"], reply["id"], reply["seq"])

    async def _on_due(self, due: Due) -> None:
        if due.kind == "sandbox":
            await sandbox_process.on_due(self.control, due.project, due.id, due.name, due.generation)
        elif due.kind in {"node", "disk", "disk-lease", "pool"}:
            await self.processes.pump((due.kind, due.project, due.id))

    async def _admits(self, node_id: str) -> bool:
        node = self.control.fleet.nodes.get(node_id)
        return node is not None and not node.evicted

    async def _converge(self) -> None:
        for key in convergence.keys(self.control):
            await self.processes.pump(key)

    async def _collect(self) -> None:
        await collection.collect(self.control, f"{self._name}-{self.control.clock().timestamp():.0f}", most=collection.PER_ROUND)

    async def _forget(self) -> None:
        await forgetting.forget(self.control)

    async def _delete_bytes(self, artifact_id: str) -> None:
        await objects.delete(self._nc, ARTIFACTS_BUCKET, artifact_id)


def _patience(subject: bytes) -> float:
    """How long a commit waits for its processes, in seconds: nobody waits for those of nodes."""
    return PATIENCE_S if subject.split(b".")[3] in PATIENT else 0.0
