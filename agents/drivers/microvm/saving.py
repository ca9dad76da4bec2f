"""The memory and the disk of a running machine at one moment, in a short pause (reference/runtimes.md §5).

Every machine maps the memory that it started from copy-on-write, so what is saved is a copy of that, made while it runs, and the pages
that are its own. Processes inside are frozen by the guest before and thawed by it after: none of them runs, in the machine or in a copy
of it, before clock and entropy are right.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
from collections.abc import AsyncIterator
from pathlib import Path

from agents.drivers.driver import RuntimeFault
from agents.drivers.microvm import channel
from agents.drivers.microvm.command import DISK, OPENED
from agents.drivers.microvm.machine import Machine
from agents.drivers.microvm.memory import Memory, copy_own_pages, copy_sparse
from agents.drivers.microvm.qmp import Monitor
from agents.drivers.microvm.together import together


async def save(machine: Machine, origin: Memory, memory: Memory, disk: Path, *, running: bool, settled: bool = False) -> Path | None:
    """Save it as ``memory``, let it go on with the disk ``disk``, and say which disk it had until then; None: the one of its start.

    ``origin`` is what it once started from; ``disk`` an empty overlay over the one that it has.
    ``settled``: what processes have written is on the disk, and not in the memory alone.
    Raises ``snapshot.not-permitted``, ``vm.gone``; the machine goes on in any case.
    """
    await asyncio.to_thread(copy_sparse, origin.ram, memory.ram)
    monitor = machine.monitor()
    before = await _disk(monitor)
    if running:  # changes nothing, but an emulator has then translated most of what it is asked next, while nobody waits for it; and the
        await machine.guest().ask(channel.RESTORED)  # guest agent has made the pages its own that it writes when a copy of it goes on
    async with _standing_still(machine, monitor, running=running, settled=settled):
        pages = asyncio.to_thread(copy_own_pages, machine.pid, origin.ram, memory.ram)
        await together(pages, monitor.execute("xen-save-devices-state", filename=str(memory.state), live=False))
        onward = {"snapshot-file": str(disk), "format": "qcow2", "mode": "existing"}
        await monitor.execute("blockdev-snapshot-sync", device=DISK, **onward)
    memory.write()
    return before


async def _disk(monitor: Monitor) -> Path | None:
    [found] = [device for device in await monitor.execute("query-block") if device["device"] == DISK]
    file: str = found["inserted"]["file"]
    if file.startswith("json:"):  # what QEMU calls a disk that lies over another one than its own header says, or says so differently
        file = json.loads(file.removeprefix("json:"))["file"]["filename"]
    return None if file == OPENED else Path(file)


@contextlib.asynccontextmanager
async def _standing_still(machine: Machine, monitor: Monitor, *, running: bool, settled: bool) -> AsyncIterator[None]:
    if not running:
        yield
        return
    guest = machine.guest()
    with contextlib.suppress(RuntimeFault):  # one process that cannot be interrupted now does not spoil a snapshot
        await guest.ask(channel.FREEZE, timeout_s=2)
    try:
        if settled:
            await guest.ask(channel.SETTLE)
        await monitor.execute("stop")
        yield
    finally:
        await asyncio.shield(_go_on(machine, monitor))


async def _go_on(machine: Machine, monitor: Monitor) -> None:
    thawed = asyncio.create_task(machine.guest().ask(channel.THAW))
    await monitor.execute("cont")
    await thawed
