"""``python -m benchmarks.alone DRIVER DIRECTORY EXT4 CPU MEMORY_MB COMMAND...``: sandboxes by the storage, network and driver of a node,
without a control plane, a bus, a journal or an agent.

For each line of JSON on stdin it does ``count`` of something, ``width`` at a time, and prints how long each took, in seconds, as JSON.
What it made is removed before the next line. As many starts are under way as the agent allows: one for each core.
"""

from __future__ import annotations

import asyncio
import json
import logging
import os
import sys
import time
from dataclasses import replace
from functools import partial
from pathlib import Path

import uvloop

from agents.drivers import hostns
from agents.drivers.driver import CanSnapshot, Driver, Handle, Limits, MapsUsers, Spec, TakesDisk
from agents.host.reaper import become_subreaper
from agents.network.netns import choose_network
from agents.registry import working
from agents.storage.all import all_roots
from benchmarks.harness import at_once
from bus.logging import configure

ARTIFACT = "rfs-alone"


class Alone:
    """A node's parts."""

    def __init__(self, driver: Driver, directory: Path, ext4: Path, limits: Limits, argv: list[str]) -> None:
        self._driver, self._directory, self._ext4, self._limits, self._argv = driver, directory, ext4, limits, argv
        self._roots = all_roots(directory / "storage")
        self._network = choose_network(directory / "network")
        self._places = asyncio.Semaphore(len(os.sched_getaffinity(0)))
        self._disk = isinstance(driver, TakesDisk)
        self._number = 0
        self._sandboxes: dict[str, Handle] = {}

    async def open(self) -> None:
        await self._network.setup()
        await self._roots.prepare(ARTIFACT, self._ext4, disk=self._disk)
        self._stocking = asyncio.create_task(self._network.stock())

    async def close(self) -> None:
        await self._clear()
        self._stocking.cancel()
        await asyncio.gather(self._stocking, return_exceptions=True)
        await self._network.teardown()
        await self._roots.remove_snapshot("snap-1")
        await self._roots.forget(ARTIFACT)
        await self._driver.close()

    async def _clear(self) -> None:
        for name in list(self._sandboxes):
            await self._driver.destroy(name)
            await self._network.detach(name)
            await self._roots.remove(name)
            del self._sandboxes[name]

    async def _create(self, snapshot: str | None = None) -> str:
        self._number += 1
        name = f"sb-{self._number}"
        ids = self._driver.ids if isinstance(self._driver, MapsUsers) else 0
        async with self._places:
            root = await self._roots.create(name, ARTIFACT, snapshot, disk=self._disk, ids=ids)
            wire = await self._network.attach(name)
            memory = None if snapshot is None else self._roots.memory(snapshot)
            logs = self._directory / "logs" / name
            spec = Spec(name, 0, root, self._argv, {}, logs, limits=self._limits, netns=wire.netns, ids=ids, memory=memory)
            self._sandboxes[name] = await self._driver.start(replace(spec, address=wire.interface, gateway=wire.gateway))
        return name

    async def do(self, what: str, count: int, width: int, pause: float) -> list[float]:
        """``create``, or ``restore``: the same from a snapshot."""
        if what == "snapshot":
            return [await self._snapshot()]
        took: list[float] = []

        async def one(_: int) -> None:
            await asyncio.sleep(pause)
            began = time.perf_counter()
            await self._create("snap-1" if what == "restore" else None)
            took.append(time.perf_counter() - began)

        await at_once(count, width, one)
        await self._clear()
        return took

    async def _snapshot(self) -> float:
        """One of a sandbox that runs, for ``restore``."""
        name = await self._create()
        began = time.perf_counter()
        take = partial(self._driver.snapshot, self._sandboxes[name]) if isinstance(self._driver, CanSnapshot) else None
        await self._roots.snapshot(name, "snap-1", take)
        return time.perf_counter() - began


async def _main() -> None:
    name, directory, ext4, cpu, memory_mb, *argv = sys.argv[1:]
    drivers = await working(name, Path(directory) / "drivers")
    alone = Alone(drivers[name], Path(directory), Path(ext4), Limits(float(cpu), int(memory_mb), 64), argv)
    await alone.open()
    try:
        while line := await asyncio.to_thread(sys.stdin.readline):
            print(json.dumps(await alone.do(**json.loads(line))), flush=True)
    finally:
        await alone.close()


if __name__ == "__main__":
    configure(logging.WARNING)
    hostns.enter(Path(sys.argv[2]))
    become_subreaper()
    uvloop.run(_main())
    hostns.leave(Path(sys.argv[2]))
