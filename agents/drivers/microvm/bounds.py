"""What a machine may take of the host, whatever whoever is root in it does: a control group around QEMU, where this user may make one.

Looser than the limits inside the guest, which are the exact ones: QEMU itself needs memory, threads and processor too.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import secrets
from collections.abc import AsyncIterator, Collection
from typing import Final

from agents.drivers.driver import Limits, RuntimeFault
from agents.drivers.microvm.command import Shape
from agents.host import cgroups

OWN_MB: Final = 160
"""Of QEMU itself: 25 MiB, and what it translates, 32 MiB; the rest is room for the files' pages that it has just read and written."""
OWN_CPU: Final = 0.25
OWN_THREADS: Final = 128
"""Its disk's workers are at most 64."""


class Bounds:
    """``mark`` is the driver's: the groups of several agents on a host have different names."""

    def __init__(self, mark: str) -> None:
        self._prefix = f"strandline-{mark}-"
        self._held: set[str] = set()
        self.possible = os.geteuid() == 0 and cgroups.layout() is not cgroups.Layout.NONE and self._try()

    def _try(self) -> bool:
        """Made and taken away again: root in a container often may not."""
        probe = cgroups.Cgroup(f"{self._prefix}{secrets.token_hex(6)}")
        try:
            probe.make()
            probe.limit(1, OWN_MB, OWN_THREADS)
        except (OSError, ValueError):
            return False
        finally:
            probe.drop()
        return True

    def name(self) -> str:
        """For a group that ``around`` makes. Empty where there can be none."""
        if not self.possible:
            return ""
        name = f"{self._prefix}{secrets.token_hex(6)}"
        self._held.add(name)
        return name

    async def around(self, name: str, pid: int, shape: Shape) -> None:
        """Make the group of that name, bounded by what the machine has, with this process in it. Nothing for one that has ended already.

        Takes some 12 ms where a kernel waits for all its processors before it moves a process (v1). Raises ``limits.refused``.
        """
        if not name:
            return
        making = asyncio.ensure_future(asyncio.to_thread(self._enclose, cgroups.Cgroup(name), pid, shape))
        try:
            await asyncio.shield(making)
        except ProcessLookupError:
            await self.remove(name)
        except OSError as error:
            await self.remove(name)
            raise RuntimeFault("limits.refused", f"no control group for a machine: {error}", retryable=True) from error
        finally:
            await asyncio.wait({making})  # a thread is at it, which nothing stops

    @staticmethod
    def _enclose(group: cgroups.Cgroup, pid: int, shape: Shape) -> None:
        group.make()
        group.limit(shape.cpus + OWN_CPU, shape.ram_mb + OWN_MB, shape.cpus + OWN_THREADS)
        group.add(pid)

    @contextlib.asynccontextmanager
    async def unless_owned(self, name: str) -> AsyncIterator[None]:
        """Inside the block somebody writes down whose it is; when that fails it is taken away, with the machine."""
        try:
            yield
        except BaseException:
            await asyncio.shield(self.remove(name))
            raise

    def narrow(self, name: str, shape: Shape, limits: Limits) -> None:
        """To the processor time that a sandbox has. Not before it has started: that would take as much longer."""
        if name:
            with contextlib.suppress(OSError):
                cgroups.Cgroup(name).limit(limits.cpu + OWN_CPU, shape.ram_mb + OWN_MB, shape.cpus + OWN_THREADS)

    def out_of_memory(self, name: str) -> bool:
        return bool(name) and cgroups.Cgroup(name).oom_kills() > 0

    async def remove(self, name: str) -> None:
        """With whatever is in it."""
        if name:
            await cgroups.Cgroup(name).remove()
            self._held.discard(name)

    async def sweep(self, known: Collection[str]) -> None:
        """Take away those that a crash has left: nobody knows them, and nothing is in them any more."""
        if not self.possible:
            return
        for name in cgroups.names(self._prefix) - set(known) - self._held:
            if not cgroups.Cgroup(name).members():
                await self.remove(name)
