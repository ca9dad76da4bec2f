"""Snapshots that every node can fetch: having them stored, believing that they are, and taking away what nobody needs.

A node stores a snapshot's content as chunks under a manifest (``bus/chunks.py``); that it is stored is true when the control plane has
found the manifest and every chunk that it names. What a manifest of a snapshot that is gone has named goes, unless another one names it.
"""

from __future__ import annotations

from datetime import timedelta

from bus import chunks
from domain.kernel.errors import Refused
from domain.nodes.orders import Failure, SnapshotExport, SnapshotExported, Verb
from domain.templates.snapshot import Snapshot, SnapshotState
from handlers.control import Control

BAD = frozenset({"object.corrupt", "object.not-found"})
"""What a node says that cannot fetch a stored snapshot as it should be."""


async def pump(control: Control, project: str, snapshot: Snapshot) -> None:
    """Have a node that has it store it, or give up when its time is over."""
    export = snapshot.export
    if export is None:
        return
    if control.clock() >= export.deadline:
        cause = control.own_cause(project, "snapshot", snapshot.id, "export-expired", export.attempt)
        failure = Failure(code="snapshot.export-expired", message="no node has stored it in time")
        await control.change(Snapshot, project, snapshot.id, cause, lambda s: s.export_failed(cause.at, export.attempt, failure))
        return
    for node_id in sorted(snapshot.places, key=lambda n: (n != snapshot.node_id, n)):
        node = control.fleet.nodes.get(node_id)
        if node is not None and node.healthy:
            body = SnapshotExport(snapshot_id=snapshot.id).model_dump(mode="json")
            order = control.new_order(
                Verb.SNAPSHOT_EXPORT, project, ("snapshot", snapshot.id), body, key=snapshot.id, attempt=export.attempt, salt=node_id
            )
            await control.order(node_id, order)
            return


async def complete(control: Control, project: str, snapshot_id: str, exported: SnapshotExported) -> list[str]:
    """Which chunks of it are missing. From here on, if none is, no collection can take any. Raises ``Refused``."""
    async with control.storing:
        manifest = await chunks.get_manifest(control.nc, project, snapshot_id, exported.manifest, leader=True)
        return sorted(await chunks.missing(control.nc, manifest.chunks))


async def found_bad(control: Control, project: str, snapshot_id: str, manifest: str | None, node_id: str, code: str) -> None:
    """A node could not fetch it, and so does not have it. Its word is a claim: what is stored counts no more if it is really damaged."""
    snapshot = await control.find(Snapshot, project, snapshot_id)
    if code not in BAD or manifest is None or snapshot is None or snapshot.stored_as is None:
        return
    why = await _damage(control, project, snapshot_id, manifest)
    if why is None:
        return
    cause = control.own_cause(project, "snapshot", snapshot_id, "unstored", manifest, snapshot.version)

    def accept(s: Snapshot) -> None:
        s.lost(cause.at, why, node_id)
        s.unstored(cause.at, manifest, why)

    await control.change(Snapshot, project, snapshot_id, cause, accept)


async def _damage(control: Control, project: str, snapshot_id: str, manifest: str) -> str | None:
    """What is wrong, every byte having been read; what is not its own content goes, so that it can be stored again."""
    try:
        found = await chunks.get_manifest(control.nc, project, snapshot_id, manifest, leader=True)
    except Refused as refused:
        if refused.code not in BAD:
            raise
        return refused.message
    why = None
    for digest in found.chunks:
        try:
            await chunks.get(control.nc, digest)
        except Refused as refused:
            if refused.code not in BAD:
                raise
            await chunks.drop(control.nc, digest)
            why = why or refused.message
    return why


async def collect(control: Control) -> int:
    """Take away what nobody needs; returns how many chunks. Raises ``Refused`` when the bus stays away: then nothing is taken for gone."""

    async def keep(project: str, owner: str, digest: str) -> bool:
        snapshot = await control.find(Snapshot, project, owner)
        if snapshot is None or snapshot.state is SnapshotState.GONE:
            return False
        return snapshot.export is not None or (snapshot.stored_as is not None and snapshot.stored_as.manifest == digest)

    async with control.storing:
        return await chunks.collect(control.nc, keep, timedelta(seconds=control.deadlines.abandoned_s))
