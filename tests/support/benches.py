"""The drivers as kinds that a contract test is run for, and the bench that such a test works at."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from support import rootfs
from support.guests import GUESTS
from support.privileges import ROOT

from agents.drivers.driver import Condition, Driver, ExecRequest, ExecResult, Handle, Limits, Spec
from agents.drivers.launchers import Bubblewrap, Unshare
from agents.drivers.oci import OciDriver
from agents.drivers.process import ProcessDriver
from agents.drivers.sim import SimDriver
from agents.drivers.vm import VmDriver
from agents.host import processes
from agents.storage import qcow2


@dataclass(frozen=True)
class Kind:
    """``real``: it runs programs, so that a test may ask for any of them. ``disk``: in a machine of their own, from a disk."""

    name: str
    make: Callable[[Path], Driver]
    real: bool = True
    program: str = ""
    disk: bool = False

    def alive(self, first: int) -> Callable[[], list[int]]:
        """Asks for the processes of a sandbox by the one that ``inspect`` names: its pid namespace's, or the machine."""
        if self.disk:
            return lambda: _living([first])
        namespace = processes.pid_namespace(first)
        return lambda: _living(processes.members(namespace))

    def __str__(self) -> str:
        return self.name


def _living(pids: Iterable[int]) -> list[int]:
    return [pid for pid in pids if (seen := processes.stat(pid)) is not None and seen.state != "Z"]


SIM = Kind("sim", SimDriver, real=False)
BWRAP = Kind("bwrap", lambda directory: ProcessDriver(directory, Bubblewrap()), program="bwrap")
UNSHARE = Kind("unshare", lambda directory: ProcessDriver(directory, Unshare()), program="unshare")
OCI = Kind("oci", OciDriver, program="crun")
VM = Kind("vm", lambda directory: VmDriver(directory, GUESTS), program="qemu-system-x86_64", disk=True)

KINDS = {
    "sim": pytest.param(SIM),
    "bwrap": pytest.param(BWRAP),
    "unshare": pytest.param(UNSHARE),
    "oci": pytest.param(OCI, marks=pytest.mark.root),
    "vm": pytest.param(VM),
}

ALL = pytest.mark.parametrize("kind", KINDS.values(), indirect=True, ids=str)
REAL = pytest.mark.parametrize("kind", [KINDS[name] for name in ("bwrap", "unshare", "oci", "vm")], indirect=True, ids=str)
KERNEL = pytest.mark.parametrize("kind", [KINDS[name] for name in ("bwrap", "unshare", "oci")], indirect=True, ids=str)
"""Those whose sandboxes run on this kernel."""
PROCESS = pytest.mark.parametrize("kind", [KINDS[name] for name in ("bwrap", "unshare")], indirect=True, ids=str)
BOUNDING = pytest.mark.parametrize(
    "kind", [KINDS["oci"], KINDS["vm"]] if ROOT else [KINDS["bwrap"], KINDS["unshare"], KINDS["vm"]], indirect=True, ids=str
)
"""Those that bound the number of processes here: the kernel does not count root's against a limit of its own."""
CONTAINER = pytest.mark.parametrize("kind", [KINDS["oci"]], indirect=True, ids=str)


class Bench:
    """A driver, a root of its own, and short words for what tests do with them."""

    def __init__(self, kind: Kind, directory: Path, root: Path) -> None:
        self.kind = kind
        self.directory = directory
        self.root = root
        self.driver: Any = kind.make(directory / "driver")
        self.ids = 0

    def map_users(self, ids: int) -> None:
        """Give the root, as storage does, to the users that a driver's sandboxes have of their own."""
        self.ids = ids
        for path in (self.root, *self.root.rglob("*")):
            found = path.lstat()
            os.chown(path, ids + found.st_uid, ids + found.st_gid, follow_symlinks=False)
            if not path.is_symlink():
                path.chmod(found.st_mode & 0o7777)  # which chown takes bits from

    async def again(self) -> Any:
        """The driver of the next agent process, over the same directory."""
        await self.driver.close()
        self.driver = self.kind.make(self.directory / "driver")
        return self.driver

    def place(self, name: str) -> Path:
        """The sandbox's root: the directory, or a disk with what is in it at the first start."""
        if not self.kind.disk:
            return self.root
        base, disk = self.directory / "root.ext4", self.directory / f"{name}.qcow2"
        if not base.exists():
            rootfs.make_ext4(self.root, base)
        if not disk.exists():
            qcow2.create(disk, base)
        return disk

    def kept(self, path: str) -> bytes | None:
        """What is in a file of the root, as the host sees it; None for a disk, which it does not look into."""
        return None if self.kind.disk else (self.root / path).read_bytes()

    def spec(self, *argv: str, name: str = "sb-1", generation: int = 0, env: Mapping[str, str] | None = None, **more: Any) -> Spec:
        more.setdefault("limits", Limits(cpu=1, memory_mb=256, pids=256))
        return Spec(name, generation, self.place(name), argv, env or {}, self.directory / "logs" / name, ids=self.ids, **more)

    async def start(self, *argv: str, **more: Any) -> Handle:
        return await self.driver.start(self.spec(*(argv or ("/bin/sleep", "100000")), **more))

    async def sh(self, handle: Handle, script: str, **more: Any) -> ExecResult:
        return await self.driver.exec(handle, ExecRequest(["/bin/sh", "-c", script], **more))

    async def said(self, handle: Handle, script: str, **more: Any) -> str:
        """What a script that must succeed says."""
        done = await self.sh(handle, script, **more)
        assert done.code == 0, done
        return done.stdout.decode().strip()

    async def condition(self, handle: Handle) -> Condition:
        return (await self.driver.inspect(handle)).condition

    def log(self, stream: str = "stdout", name: str = "sb-1") -> str:
        path = self.directory / "logs" / name / stream
        return path.read_text() if path.exists() else ""
