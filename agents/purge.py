"""Removing every trace of a node from the host: sandboxes, mounts, interfaces, files. For an agent that does not run any more."""

from __future__ import annotations

import shutil
from pathlib import Path

from agents.drivers import hostns
from agents.network.netns import choose_network
from agents.options import Options
from agents.ownership import own
from agents.registry import DRIVERS
from agents.storage.all import all_roots
from agents.volumes.store import Volumes


async def purge(options: Options) -> None:
    """Raises what could not be removed, and ``InUseError``. Drivers need no check here: what they once started they can end."""
    place = options.own
    if not place.is_dir():
        return
    with own(place):
        await _purge(place)


async def _purge(place: Path) -> None:
    for name, make in DRIVERS.items():
        if (place / "drivers" / name).is_dir():
            driver = make(place / "drivers" / name)
            for sandbox_id in await driver.list():
                await driver.destroy(sandbox_id)
            await driver.close()
    network = choose_network(place / "network")
    for sandbox_id in await network.list():
        await network.detach(sandbox_id)
    await network.teardown()
    await Volumes(place / "volumes").close_all()
    roots = all_roots(place / "storage")
    there = await roots.list()
    for sandbox_id in there.roots:
        await roots.remove(sandbox_id)
    for snapshot_id in there.snapshots:
        await roots.remove_snapshot(snapshot_id)
    for artifact_id in there.artifacts:
        await roots.forget(artifact_id)
    hostns.leave(place)
    shutil.rmtree(place)
