"""``create-sandbox``: the saga that brings a sandbox up (reference/miren-sandbox.md §2.3).

| action | does | undo |
|---|---|---|
| artifact | has the verified bytes and the lower made of them, and the snapshot; usually all is there | none: they are shared |
| root | the sandbox's own writable root, from the artifact, a snapshot, or stock | removes it |
| disks | has its disks mounted, for it alone; only where it has some | unmounts them, when nothing uses them any more |
| network | leases an address to the sandbox's id, makes its namespace, puts up its egress policy | removes, releases |
| logs | a directory for its output | removes it |
| start | starts the main process; its handle is on record before anybody is told | destroys every generation |
| ready | waits for the probe port; its exit beats the port | none: it only looks |

Everything an action makes is found again by the sandbox's id, which is why one that runs again adopts it and an undo needs no more.
Actions from ``root`` to ``start`` cost the host something and are bounded by its cores; waiting is not.
"""

from __future__ import annotations

import asyncio
import re
import shutil
from collections.abc import Callable
from dataclasses import asdict, dataclass
from datetime import datetime
from pathlib import Path
from typing import Any, Final

import structlog

from agents.drivers.driver import CanHold, Driver, Handle, Limits, MapsUsers, RuntimeFault, Spec, TakesDisk
from agents.drivers.inside import IDENTITY_PATH
from agents.namefiles import tell_names
from agents.node import LocalNode
from agents.ports import Attachment
from agents.readiness import port_statuses, wait_ready
from agents.records import SandboxRecord
from agents.stock import Waiting
from agents.volumes import step as disks
from domain.kernel.aggregate import Record
from domain.kernel.saga import Action, Nothing, NoUndo, define
from domain.nodes.orders import PortStatus

log = structlog.get_logger(__name__)

_LACKING: Final = frozenset({"artifact.not-found", "snapshot.not-found"})


@dataclass(frozen=True, slots=True)
class Bringup:
    """What the actions work with. ``since``: when an action was first started, so that a wait is not longer for being interrupted."""

    node: LocalNode
    driver: Driver
    since: Callable[[str], datetime]


class Wanted(Record):
    """What the saga is given: the sandbox as it is written down."""

    box: SandboxRecord


class Rooted(Record):
    path: str


class Wired(Record):
    """What has to be known of a sandbox's network. An earlier program said less."""

    netns: str | None
    address: str
    interface: str = ""
    gateway: str = ""


class Started(Record):
    """``handle``: the driver's ``Handle``, as an object."""

    handle: dict[str, Any]


class Served(Record):
    ports: tuple[PortStatus, ...]


class ToStart(Wanted, Rooted, Wired):
    pass


class ToServe(Wanted, Started):
    address: str


class Up(Started, Served):
    """What is said of a sandbox that is up."""

    address: str


async def _artifact(b: Bringup, wanted: Wanted) -> Nothing:
    if not b.node.stock.has(wanted.box):  # what is held lies over it already
        await _have_artifact(b, wanted)
    return Nothing()


async def _have_artifact(b: Bringup, wanted: Wanted) -> None:
    spec = wanted.box.spec
    path = await b.node.cache.ensure(spec.artifact)
    async with b.node.creating:
        await b.node.roots.prepare(spec.artifact.artifact_id, path, disk=isinstance(b.driver, TakesDisk))
    if spec.snapshot_id is not None and spec.snapshot_manifest is not None:
        await b.node.vault.ensure(b.node.roots, wanted.box.project, spec.snapshot_id, spec.artifact.artifact_id, spec.snapshot_manifest)


async def _root(b: Bringup, wanted: Wanted) -> Rooted:
    ids = b.driver.ids if isinstance(b.driver, MapsUsers) else 0
    artifact, snapshot = wanted.box.spec.artifact.artifact_id, wanted.box.spec.snapshot_id
    held = b.node.stock.take(wanted.box)

    async def made() -> Rooted:
        async with b.node.creating:
            if held is not None:
                given = await b.node.roots.give(held.name, wanted.box.id)
                b.node.crash.here("give-root:after")
                return Rooted(path=str(given))
            disk = isinstance(b.driver, TakesDisk)
            return Rooted(path=str(await b.node.roots.create(wanted.box.id, artifact, snapshot, disk=disk, ids=ids)))

    try:
        return await made()
    except RuntimeFault as fault:
        if held is not None or fault.code not in _LACKING:
            raise
    await _have_artifact(b, wanted)  # what was held before this action has gone since, or with its agent
    return await made()


async def _remove_root(b: Bringup, wanted: Wanted) -> None:
    """Also what was taken for it and not come to a start: that holds the root."""
    if (held := b.node.stock.settle(wanted.box.id)) is not None:
        await end_waiting(b.node, held)
    await b.node.roots.remove(wanted.box.id)


async def _attach_disks(b: Bringup, wanted: Wanted) -> Nothing:
    await disks.attach(b.node, b.driver, wanted.box)
    return Nothing()


async def _detach_disks(b: Bringup, wanted: Wanted) -> None:
    """Its main process is gone, or never was."""
    await b.node.volumes.detach(wanted.box.id)


async def _network(b: Bringup, wanted: Wanted) -> Wired:
    held, network = b.node.stock.taken(wanted.box.id), b.node.network
    async with b.node.creating:
        if held is not None:
            await network.give(held.name, wanted.box.id)
            b.node.crash.here("give-network:after")
        attached = await network.attach(wanted.box.id, wanted.box.spec.egress)
    return wire_of(attached)


def wire_of(attached: Attachment) -> Wired:
    """What ``spec_of`` has to know of a sandbox's network."""
    netns = None if attached.netns is None else str(attached.netns)
    return Wired(netns=netns, address=attached.address, interface=attached.interface, gateway=attached.gateway)


async def _detach(b: Bringup, wanted: Wanted) -> None:
    await b.node.network.detach(wanted.box.id)


async def _logs(b: Bringup, wanted: Wanted) -> Nothing:
    held, place = b.node.stock.taken(wanted.box.id), b.node.logs(wanted.box.id)
    if held is not None and not place.exists():
        b.node.logs(held.name).rename(place)
        b.node.crash.here("give-logs:after")
    place.mkdir(mode=0o700, parents=True, exist_ok=True)
    return Nothing()


async def _remove_logs(b: Bringup, wanted: Wanted) -> None:
    await asyncio.to_thread(remove_tree, b.node.logs(wanted.box.id))


async def _start(b: Bringup, ready: ToStart) -> Started:
    spec = spec_of(b.node, ready.box, Path(ready.path), ready, ready.box.spec.snapshot_id)
    held = b.node.stock.taken(ready.box.id)
    async with b.node.creating:
        tell_names(spec, ready.box.project)
        given = None if held is None or not isinstance(b.driver, CanHold) else await b.driver.give(held.name, spec)
        b.node.crash.here("give-start:after" if given is not None else "")
        b.node.stock.settle(ready.box.id)
        handle = given or await b.driver.start(spec)
    return Started(handle=asdict(handle))


async def _destroy(b: Bringup, ready: ToStart) -> None:
    await b.driver.destroy(ready.box.id)


async def serve(b: Bringup, started: ToServe) -> Served:
    """Wait until it is up, also one that came up again; say what it serves."""
    box, handle = started.box, Handle(**started.handle)
    port, waited = box.spec.recipe.probe_port, (b.node.clock() - b.since("ready")).total_seconds()
    bound = await wait_ready(b.driver, handle, port, started.address, b.node.settings.port_wait_s, waited)
    if bound is not None:
        b.node.runtime_line(box.id, f"port {port} is served on {bound}, and taken for that; let the program heed $PORT")
    return Served(ports=await port_statuses(b.driver, handle, box.spec.recipe, started.address, bound))


_ARTIFACT: Final = Action("artifact", Wanted, Nothing, _artifact, NoUndo("what it made is shared"))
_ROOT: Final = Action("root", Wanted, Rooted, _root, _remove_root, after=("artifact",))
_DISKS: Final = Action("disks", Wanted, Nothing, _attach_disks, _detach_disks, after=("root",))
_REST: Final = (
    Action("network", Wanted, Wired, _network, _detach),
    Action("logs", Wanted, Nothing, _logs, _remove_logs),
    Action("start", ToStart, Started, _start, _destroy, after=("logs",)),
    Action("ready", ToServe, Served, serve, NoUndo("it only looks")),
)
CREATE_SANDBOX: Final = define("create-sandbox", 1, Wanted, _ARTIFACT, _ROOT, *_REST)
CREATE_SANDBOX_WITH_DISKS: Final = define("create-sandbox-with-disks", 1, Wanted, _ARTIFACT, _ROOT, _DISKS, *_REST)


def spec_of(node: LocalNode, record: SandboxRecord, root: Path, wire: Wired, snapshot_id: str | None = None) -> Spec:
    """What a driver is asked to start, or to go on with if the snapshot that the root was made from holds a memory."""
    recipe = record.spec.recipe
    return Spec(
        sandbox_id=record.id,
        generation=record.generation,
        root=root,
        argv=recipe.cmd,
        env={**recipe.env, **_identity(record)},
        logs=node.logs(record.id),
        cwd=recipe.cwd or "/",
        user=recipe.user,
        hostname=hostname(record),
        limits=Limits(cpu=recipe.cpu, memory_mb=recipe.memory_mb, pids=recipe.pids),
        netns=None if wire.netns is None else Path(wire.netns),
        address=wire.interface,
        gateway=wire.gateway,
        ids=node.roots.ids(record.id),
        mounts=disks.mounts_of(node, record, root),
        memory=None if snapshot_id is None else node.roots.memory(snapshot_id),
    )


def _identity(record: SandboxRecord) -> dict[str, str]:
    """Where a workload finds its token, and who can say that it is true (reference/miren-sandbox.md §8.4)."""
    return {"STRANDLINE_IDENTITY_TOKEN_PATH": IDENTITY_PATH, "STRANDLINE_OIDC_ISSUER_URL": record.issuer} if record.issuer else {}

    """The sandbox's name as far as it is a host name (RFC 1123), else its id."""
    return re.sub(r"[^a-z0-9-]+", "-", record.spec.name.lower()).strip("-")[:63] or record.id


def hostname(record: SandboxRecord) -> str:
    """The sandbox's name as far as it is a host name (RFC 1123), else its id."""
    return re.sub(r"[^a-z0-9-]+", "-", record.spec.name.lower()).strip("-")[:63] or record.id


async def end_waiting(node: LocalNode, found: Waiting) -> None:
    """Leave nothing of a start from stock but what it has given already."""
    with node.stock.begun(found):
        try:
            await node.drivers.pick(found.model.driver).destroy(found.name)
            await node.network.detach(found.name)
            await node.roots.remove(found.name)
            remove_tree(node.logs(found.name))
        except (RuntimeFault, OSError) as error:
            log.warning("stock.left", name=found.name, error=repr(error)[:300])  # an orphan, for the watchdog


def remove_tree(path: Path) -> None:
    """Remove a directory and everything in it; nothing there is fine. Raises ``OSError`` when something stays."""
    if path.exists():
        shutil.rmtree(path)
