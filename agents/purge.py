"""Removing every trace of a node from the host: sandboxes, mounts, interfaces, files. For an agent that does not run any more."""

from __future__ import annotations

import shutil

import structlog

from agents.drivers import hostns
from agents.network.netns import choose_network
from agents.options import Options
from agents.registry import DRIVERS
from agents.storage.roots import choose_roots

log = structlog.get_logger(__name__)


async def purge(options: Options) -> bool:
    """True when nothing is left. Drivers need no check here: what they once started they can end."""
    own = options.own
    if not own.is_dir():
        return True
    clean = True
    for name, make in DRIVERS.items():
        if (own / "drivers" / name).is_dir():
            driver = make(own / "drivers" / name)
            for sandbox_id in await driver.list():
                await driver.destroy(sandbox_id)
            await driver.close()
    network = choose_network(own / "network")
    for sandbox_id in await network.list():
        await network.detach(sandbox_id)
    await network.teardown()
    roots = choose_roots(own / "storage")
    there = await roots.list()
    for sandbox_id in there.roots:
        await roots.remove(sandbox_id)
    for snapshot_id in there.snapshots:
        await roots.remove_snapshot(snapshot_id)
    for artifact_id in there.artifacts:
        await roots.forget(artifact_id)
    hostns.leave(own)
    shutil.rmtree(own)
    return clean
