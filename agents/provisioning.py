"""The steps that bring a sandbox up, each with its undo (reference/miren-sandbox.md §2.3).

| step | does | undo |
|---|---|---|
| artifact | has the verified bytes and the lower made of them, and the snapshot; usually all is there | none: they are shared |
| root | the sandbox's own writable root, from the artifact, a snapshot, or stock | removes it |
| network | leases an address to the sandbox's id, makes its namespace, puts up its egress policy | removes, releases |
| logs | a directory for its output | removes it |
| start | starts the main process; its handle is on record before anybody is told | destroys every generation |
| ready | waits for the probe port; its exit beats the port | none: it only looks |

Steps from ``root`` to ``start`` cost the host something and are bounded by its cores; waiting is not.
"""

from __future__ import annotations

import asyncio
import re
import shutil
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Final

import structlog

from agents.drivers.driver import CanHold, Driver, Handle, Limits, MapsUsers, RuntimeFault, Spec, TakesDisk
from agents.node import LocalNode
from agents.ports import Attachment
from agents.readiness import port_statuses, wait_ready
from agents.records import SandboxRecord
from agents.steps import Account, Output, Step
from agents.stock import Waiting

log = structlog.get_logger(__name__)


@dataclass(frozen=True, slots=True)
class Bringup:
    """What the steps work on. Outputs of earlier steps come from the account, so that a resumed saga has them too."""

    node: LocalNode
    record: SandboxRecord
    driver: Driver
    account: Account

    @property
    def handle(self) -> Handle:
        return Handle(**self.account.outputs["start"]["handle"])


async def _artifact(b: Bringup) -> Output:
    ref = b.record.spec.artifact
    path = await b.node.cache.ensure(ref)
    async with b.node.creating:
        await b.node.roots.prepare(ref.artifact_id, path, disk=isinstance(b.driver, TakesDisk))
    snapshot, manifest = b.record.spec.snapshot_id, b.record.spec.snapshot_manifest
    if snapshot is not None and manifest is not None:
        await b.node.vault.ensure(b.node.roots, b.record.project, snapshot, ref.artifact_id, manifest)
    return {}


async def _root(b: Bringup) -> Output:
    ids = b.driver.ids if isinstance(b.driver, MapsUsers) else 0
    held = b.node.stock.take(b.record)
    async with b.node.creating:
        artifact, snapshot = b.record.spec.artifact.artifact_id, b.record.spec.snapshot_id
        if held is not None:
            await b.node.roots.give(held.name, b.record.id)
            b.node.crash.here("give-root:after")
        path = await b.node.roots.create(b.record.id, artifact, snapshot, disk=isinstance(b.driver, TakesDisk), ids=ids)
    return {"path": str(path)}


async def _remove_root(b: Bringup) -> None:
    """Also what was taken for it and not come to a start: that holds the root."""
    if (held := b.node.stock.settle(b.record.id)) is not None:
        await end_waiting(b.node, held)
    await b.node.roots.remove(b.record.id)


async def _network(b: Bringup) -> Output:
    held, network = b.node.stock.taken(b.record.id), b.node.network
    async with b.node.creating:
        if held is not None:
            await network.give(held.name, b.record.id)
            b.node.crash.here("give-network:after")
        attached = await network.attach(b.record.id, b.record.spec.egress)
    return wire_of(attached)


def wire_of(attached: Attachment) -> Output:
    """What ``spec_of`` has to know of a sandbox's network."""
    said = {"address": attached.address, "interface": attached.interface, "gateway": attached.gateway}
    return {"netns": None if attached.netns is None else str(attached.netns), **said}


async def _detach(b: Bringup) -> None:
    await b.node.network.detach(b.record.id)


async def _logs(b: Bringup) -> Output:
    held, place = b.node.stock.taken(b.record.id), b.node.logs(b.record.id)
    if held is not None and not place.exists():
        b.node.logs(held.name).rename(place)
        b.node.crash.here("give-logs:after")
    place.mkdir(mode=0o700, parents=True, exist_ok=True)
    return {}


async def _remove_logs(b: Bringup) -> None:
    await asyncio.to_thread(remove_tree, b.node.logs(b.record.id))


async def _start(b: Bringup) -> Output:
    root, snapshot = Path(b.account.outputs["root"]["path"]), b.record.spec.snapshot_id
    spec = spec_of(b.node, b.record, root, b.account.outputs["network"], snapshot)
    held = b.node.stock.taken(b.record.id)
    async with b.node.creating:
        given = None if held is None or not isinstance(b.driver, CanHold) else await b.driver.give(held.name, spec)
        b.node.crash.here("give-start:after" if given is not None else "")
        b.node.stock.settle(b.record.id)
        handle = given or await b.driver.start(spec)
    return {"handle": asdict(handle)}


async def _destroy(b: Bringup) -> None:
    await b.driver.destroy(b.record.id)


async def _ready(b: Bringup) -> Output:
    recipe, address = b.record.spec.recipe, b.account.outputs["network"]["address"]
    began = b.account.began("ready") or b.node.clock()
    spent = (b.node.clock() - began).total_seconds()  # by an agent that died while it waited
    await wait_ready(b.driver, b.handle, recipe.probe_port, address, b.node.settings.port_wait_s, spent)
    return {"ports": [port.model_dump() for port in await port_statuses(b.driver, b.handle, recipe, address)]}


async def _nothing(_: Bringup) -> None:
    """What needs no undo: the step only looked, or what it made is shared."""


PROVISION: Final = (
    Step("artifact", _artifact, _nothing),
    Step("root", _root, _remove_root),
    Step("network", _network, _detach),
    Step("logs", _logs, _remove_logs),
    Step("start", _start, _destroy),
    Step("ready", _ready, _nothing),
)


def spec_of(node: LocalNode, record: SandboxRecord, root: Path, wire: Output, snapshot_id: str | None = None) -> Spec:
    """What a driver is asked to start, or to go on with if the snapshot that the root was made from holds a memory.

    ``wire``: what ``wire_of`` said; an earlier program's has less.
    """
    recipe = record.spec.recipe
    return Spec(
        sandbox_id=record.id,
        generation=record.generation,
        root=root,
        argv=recipe.cmd,
        env=recipe.env,
        logs=node.logs(record.id),
        cwd=recipe.cwd or "/",
        user=recipe.user,
        hostname=_hostname(record),
        limits=Limits(cpu=recipe.cpu, memory_mb=recipe.memory_mb, pids=recipe.pids),
        netns=None if wire["netns"] is None else Path(wire["netns"]),
        address=wire.get("interface", ""),
        gateway=wire.get("gateway", ""),
        ids=node.roots.ids(record.id),
        memory=None if snapshot_id is None else node.roots.memory(snapshot_id),
    )


def _hostname(record: SandboxRecord) -> str:
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
