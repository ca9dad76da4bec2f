"""What nodes notice by themselves: that they are there, what they run, what ended, what lives."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import datetime
from functools import partial
from typing import Final

from domain.kernel.command import Cause
from domain.kernel.errors import Refused
from domain.kernel.ids import SYSTEM_PROJECT, derived
from domain.nodes.node import Node
from domain.nodes.orders import (
    NodeHello,
    Observation,
    Report,
    ReportKind,
    SandboxesSeen,
    SandboxExited,
    SandboxPorts,
    SnapshotsSeen,
    Verb,
)
from domain.nodes.sweeps import GRACE, Holdings, Swept
from domain.sandboxes.sandbox import Sandbox, SandboxState
from domain.templates.snapshot import Snapshot
from handlers.control import SYSTEM_ACTOR, Control
from handlers.fleet_entries import SandboxEntry
from handlers.processes import orphans
from handlers.processes.sandboxes import STARTING
from handlers.reporting.taking import Taker


async def _hello(control: Control, report: Report, cause: Cause) -> None:
    if report.kind is ReportKind.FAILED:
        return
    hello = NodeHello.model_validate(report.body)

    def accept(node: Node) -> None:
        node.hello(cause.at, hello.boot, hello.versions, hello.drivers, hello.capacity, hello.roles, hello.host, hello.storage_pct)

    await control.change(Node, SYSTEM_PROJECT, report.node, cause, accept)


async def _bye(control: Control, report: Report, cause: Cause) -> None:
    await control.change(Node, SYSTEM_PROJECT, report.node, cause, lambda n: n.go_offline(cause.at, report.at))


async def _exited(control: Control, report: Report, cause: Cause) -> None:
    exited = SandboxExited.model_validate(report.body)
    await control.change(
        Sandbox, report.project, exited.sandbox_id, cause, lambda s: s.exited(cause.at, exited.generation, exited.exit_code, exited.reason)
    )


async def _ports(control: Control, report: Report, cause: Cause) -> None:
    seen = SandboxPorts.model_validate(report.body)

    def accept(sandbox: Sandbox) -> None:
        if sandbox.state in STARTING:  # it overtook the report that it runs
            raise Refused("sandbox.not-running", f"sandbox {sandbox.id} is not known to run yet", retryable=True)
        sandbox.ports_seen(cause.at, seen.generation, seen.seen_at, seen.ports)

    await control.change(Sandbox, report.project, seen.sandbox_id, cause, accept)


async def _seen(control: Control, report: Report, cause: Cause) -> None:
    """A complete list is knowledge: what the log thinks runs there and is not in it, is lost (design.md §10.5)."""
    seen = SandboxesSeen.model_validate(report.body)
    here = [entry for entry in control.fleet.sandboxes.values() if entry.node_id == report.node]
    await _mark_refs(control, report, cause, here, complete=seen.complete)
    if not seen.complete:
        return
    for entry in [e for e in here if e.sandbox_id not in seen.sandboxes]:
        await _missing(control, cause, entry, report.at)


async def _holds(control: Control, report: Report, cause: Cause) -> None:
    """What it holds: what is nobody's is to go, and what it should hold and does not is lost (reference/miren-sandbox.md §7.1)."""
    held = Holdings.model_validate(report.body)
    sweep = await orphans.judge(control, report.node, held)
    if not sweep.empty:
        await control.order(report.node, orphans.order(control, report.node, sweep, report.id))
    if not held.unlisted:
        for entry in control.fleet.unheld(report.node, held.sandboxes):
            await _missing(control, cause, entry, held.at - GRACE)


async def _swept(control: Control, report: Report, cause: Cause) -> None:
    """What came of a sweep; one that was refused found nothing, and the next one is not far."""
    if report.kind is not ReportKind.FAILED:
        swept = Swept.model_validate(report.body)
        await control.change(Node, SYSTEM_PROJECT, report.node, cause, lambda n: n.swept(cause.at, swept))


async def _mark_refs(control: Control, report: Report, cause: Cause, here: Sequence[SandboxEntry], *, complete: bool) -> None:
    """What runs on snapshots there is in doubt while the node cannot list it (reference/cubesandbox.md §5.5)."""
    concerned: set[tuple[str, str]] = set()
    for entry in here:
        sandbox = await control.find(Sandbox, entry.project, entry.sandbox_id)
        if sandbox is not None:
            concerned |= {(entry.project, found) for found in (sandbox.spec.snapshot_id, sandbox.snapshot_id) if found}
    for project, identifier in sorted(concerned):
        if await control.find(Snapshot, project, identifier) is None:
            continue
        own = Cause(derived(cause.command, identifier), cause.digest, SYSTEM_ACTOR, project, cause.at, cause.event, cause.trace)

        def mark(snapshot: Snapshot, at: datetime = own.at) -> None:
            if complete:
                snapshot.refs_listed(at, report.node)
            else:
                snapshot.refs_unlisted(at, report.node, "the node could not list its sandboxes")

        await control.change(Snapshot, project, identifier, own, mark)


async def _missing(control: Control, cause: Cause, entry: SandboxEntry, before: datetime) -> None:
    """The node does not have it. ``before``: what the log has learnt of it since then may be what the node did not know yet."""
    if await control.find(Sandbox, entry.project, entry.sandbox_id) is None:
        return
    own = Cause(derived(cause.command, entry.sandbox_id), cause.digest, SYSTEM_ACTOR, entry.project, cause.at, cause.event, cause.trace)

    def decide(sandbox: Sandbox) -> None:
        """Here, where nothing can come in between: it may be starting at this very moment."""
        if sandbox.state in {SandboxState.RUNNING, SandboxState.PAUSED} and sandbox.modified_on < before:
            sandbox.exited(own.at, sandbox.generation, None, "lost")

    await control.change(Sandbox, entry.project, entry.sandbox_id, own, decide)


async def _snapshots(control: Control, report: Report, cause: Cause) -> None:
    """What the node has listed and does not have is lost there, unless it came after the listing, or is on its way (§5.6)."""
    seen = SnapshotsSeen.model_validate(report.body)
    for project, identifier in sorted(control.fleet.snapshots_on.get(report.node, ())):
        if identifier in seen.snapshots:
            continue
        if await control.find(Snapshot, project, identifier) is None:
            continue
        own = Cause(derived(cause.command, identifier), cause.digest, SYSTEM_ACTOR, project, cause.at, cause.event, cause.trace)
        await control.change(Snapshot, project, identifier, own, partial(_unlisted, at=own.at, seen=seen.at, node=report.node))


def _unlisted(snapshot: Snapshot, at: datetime, seen: datetime, node: str) -> None:
    """Decided where nothing can come in between: it may become ready at this very moment."""
    if snapshot.modified_on < seen and not _needed(snapshot, node):
        snapshot.lost(at, node_id=node)


def _needed(snapshot: Snapshot, node: str) -> bool:
    """A sandbox that is perhaps just fetching it there, or going back to it, finds out by itself."""
    return snapshot.rollback is not None or any(ref.node_id == node for ref in snapshot.refs.values())


TAKERS: Final[dict[str, Taker]] = {
    Observation.NODE_HELLO: _hello,
    Verb.NODE_INSPECT: _hello,
    Observation.HOLDINGS: _holds,
    Observation.SWEPT: _swept,
    Verb.NODE_SWEEP: _swept,
    Observation.NODE_BYE: _bye,
    Observation.SANDBOX_EXITED: _exited,
    Observation.SANDBOX_PORTS: _ports,
    Observation.SANDBOXES: _seen,
    Observation.SNAPSHOTS: _snapshots,
}
