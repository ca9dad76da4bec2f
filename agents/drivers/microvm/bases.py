"""Machines that have booted and wait for a disk, saved: every sandbox starts from one, in the time that a restore takes.

A base is made once per guest image, QEMU, accelerator and shape, and belongs to all agents of its user: it lies beside the guest image.
"""

from __future__ import annotations

import asyncio
import contextlib
import fcntl
import hashlib
import shutil
import tempfile
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Final

from agents.drivers.driver import RuntimeFault
from agents.drivers.microvm import channel, machine
from agents.drivers.microvm.command import Boot, Build, Shape, kernel_words
from agents.drivers.microvm.machine import Machine, Place
from agents.drivers.microvm.memory import Memory
from agents.guest import uses
from agents.guest.image import GuestImage

BOOT_S: Final = 60.0
"""An emulated processor needs 2 s, on a busy host several times that (reference/runtimes.md §4)."""


class Bases:
    """``mark``: the environment by which machines of a boot that was cut short are found."""

    def __init__(self, mark: Mapping[str, str]) -> None:
        self._mark = mark
        self._locks: dict[Path, asyncio.Lock] = {}

    async def get(self, guest: GuestImage, build: Build, shape: Shape, boot_s: float = BOOT_S) -> Memory:
        """Raises ``vm.boot-failed``, ``vm.no-qemu``."""
        directory = guest.directory / "bases" / _name(build, shape)
        async with self._locks.setdefault(directory, asyncio.Lock()):
            if not directory.is_dir():
                directory.parent.mkdir(mode=0o700, exist_ok=True)
                with await asyncio.to_thread(_locked, directory):
                    if not directory.is_dir():
                        await self._make(guest, build, shape, directory, boot_s)
        return Memory.read(directory)

    async def _make(self, guest: GuestImage, build: Build, shape: Shape, directory: Path, boot_s: float) -> None:
        with _draft(directory.parent) as draft:
            memory = Memory(draft, shape, build)
            kernel = Boot(guest.vmlinuz, guest.initrd)
            booted = machine.boot(Place(draft, draft / "logs", self._mark), build, shape, memory.ram, kernel)
            try:
                await self._answers(booted, draft, boot_s)
                monitor = booted.monitor()
                await monitor.execute("stop")
                await monitor.execute("xen-save-devices-state", filename=str(memory.state), live=False)
            finally:
                await booted.kill()
            for name in ("qmp", "agent", "qemu.log", "status"):
                (draft / name).unlink(missing_ok=True)
            shutil.rmtree(draft / "logs")
            uses.allow(draft)
            memory.write()
            draft.rename(directory)
            self._discard_others(directory)

    @staticmethod
    def _discard_others(directory: Path) -> None:
        """Boots of the same image by another QEMU, or of a machine that an earlier program made."""
        accel, made, *_ = directory.name.split("-")
        for other in directory.parent.glob(f"{accel}-*"):
            if not other.name.startswith(f"{accel}-{made}-"):
                uses.discard_if_free(other)

    async def _answers(self, booted: Machine, draft: Path, boot_s: float) -> None:
        try:
            await booted.guest().ask(channel.PING, timeout_s=boot_s)
            await booted.guest().ask(channel.RESTORED)  # for its pages' sake (``saving``)
        except RuntimeFault as fault:
            console = (draft / "logs" / "runtime").read_text(errors="replace").strip()[-600:]
            raise RuntimeFault("vm.boot-failed", f"{fault}; {booted.last_words()} {console}".strip(), retryable=True) from fault


def _name(build: Build, shape: Shape) -> str:
    said = "\0".join((build.qemu, build.machine, kernel_words(build)))
    made = hashlib.sha256(said.encode()).hexdigest()[:8]
    return f"{build.accel}-{made}-{shape.ram_mb}-{shape.cpus}"


def _locked(directory: Path) -> contextlib.ExitStack:
    """One agent boots it, the others wait for it."""
    stack = contextlib.ExitStack()
    file = stack.enter_context((directory.parent / f".{directory.name}.lock").open("a"))
    fcntl.flock(file, fcntl.LOCK_EX)
    return stack


@contextlib.contextmanager
def _draft(parent: Path) -> Iterator[Path]:
    draft = Path(tempfile.mkdtemp(prefix=".base-", dir=parent))
    try:
        yield draft
    finally:
        shutil.rmtree(draft, ignore_errors=True)
