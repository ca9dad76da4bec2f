"""What this node is and can do: versions, drivers that work, capacity, host. Said at every start and whenever asked (design.md §7)."""

from __future__ import annotations

import contextlib
import fcntl
import importlib.metadata
import os
import shutil
import tempfile
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final, Literal

from agents.drivers.driver import Driver, HasGuestImage
from agents.host import cgroups, processes
from agents.records import SandboxRecord
from domain.nodes.orders import Capacity, DriverInfo, NodeHello, Versions
from domain.nodes.placement_rules import EGRESS

GUEST_IMAGE_FILE: Final = "guest-image-version"
FIRST_GUEST_IMAGE: Final = "1"
MAX_SANDBOXES: Final = 1000
_FICLONE: Final = 0x40049409
"""``ioctl`` to share another file's blocks, from linux/fs.h."""

Role = Literal["builder", "runner"]


@dataclass(frozen=True, slots=True)
class Promise:
    """What the operator says the node has, instead of what it looks like."""

    cpu: float | None = None
    memory_mb: int | None = None
    sandboxes: int = MAX_SANDBOXES
    roles: tuple[Role, ...] = ("builder", "runner")


class Fingerprint:
    """``directories``: where a guest image's version is looked for, the node's own first; where none says it, the drivers do.

    ``boot`` is new with each agent process.

    ``sealing_key``: the public key for secrets that only this node can open (``agents/sealing.py``). ``roots``: how roots are made,
    ``overlay`` or ``copies``. ``disks``: the file systems that disks can have here, or ``directory``. ``egress``: the node's network lets
    sandboxes out.
    """

    def __init__(
        self,
        boot: str,
        directories: Sequence[Path],
        drivers: Iterable[Driver],
        promise: Promise,
        sealing_key: str = "",
        roots: str = "",
        disks: Sequence[str] = (),
        *,
        egress: bool = False,
    ) -> None:
        self.boot = boot
        self._directories = directories
        self._drivers = list(drivers)
        self._promise = promise
        self._sealing_key = sealing_key
        self._roots = roots
        self._disks = disks
        self._egress = egress
        self._versions = self._read_versions()

    @property
    def data(self) -> Path:
        return self._directories[0]

    def versions(self) -> Versions:
        """As they were when last looked at: a replica is bound to these."""
        return self._versions

    def refresh(self) -> None:
        """Look again."""
        self._versions = self._read_versions()

    def _read_versions(self) -> Versions:
        return Versions(guest_image=self._guest_image(), agent=agent_version(), kernel=os.uname().release)

    def _guest_image(self) -> str:
        for directory in self._directories:
            with contextlib.suppress(OSError, UnicodeDecodeError):
                if said := (directory / GUEST_IMAGE_FILE).read_text(encoding="utf-8").strip():
                    return said[:128]
        booted = (driver.guest_image for driver in self._drivers if isinstance(driver, HasGuestImage))
        return next(filter(None, booted), FIRST_GUEST_IMAGE)[:128]

    async def hello(self) -> NodeHello:
        """Everything."""
        return NodeHello(
            boot=self.boot,
            versions=self._versions,
            drivers=tuple([DriverInfo(name=d.name, version=await d.version(), flags=self._flags(d)) for d in self._drivers]),
            capacity=self.capacity(),
            storage_pct=storage_pct(self.data),
            roles=self._promise.roles,
            host=self._host(),
        )

    def _flags(self, driver: Driver) -> tuple[str, ...]:
        """The driver's, and whether what it starts gets out of here by rules of its own."""
        return tuple(sorted({*driver.flags, EGRESS})) if self._egress and "network" in driver.flags else driver.flags

    def capacity(self) -> Capacity:
        return Capacity(
            cpu=self._promise.cpu or float(len(os.sched_getaffinity(0))),
            memory_mb=self._promise.memory_mb or processes.total_memory_mb(),
            disk_mb=shutil.disk_usage(self.data).total >> 20,
            sandboxes=self._promise.sandboxes,
        )

    def _host(self) -> dict[str, str]:
        host = os.uname()
        return {
            "hostname": host.nodename,
            "machine": host.machine,
            "cgroups": cgroups.layout().value,
            "reflink": "yes" if reflinks(self.data) else "no",
            "root": "yes" if os.geteuid() == 0 else "no",
            **({"roots": self._roots} if self._roots else {}),
            **({"disks": ",".join(self._disks)} if self._disks else {}),
            **({"sealing_key": self._sealing_key} if self._sealing_key else {}),
        }


def agent_version() -> str:
    """The installed version of this program."""
    try:
        return importlib.metadata.version("strandline")
    except importlib.metadata.PackageNotFoundError:
        return "0"


def storage_pct(directory: Path) -> float:
    """How full the file system is for whoever may not use root's reserve, in percent."""
    found = os.statvfs(directory)
    used = found.f_blocks - found.f_bfree
    usable = used + found.f_bavail
    return round(100 * used / usable, 1) if usable else 100.0


def reflinks(directory: Path) -> bool:
    """Whether files there can share blocks; tried, not guessed."""
    with contextlib.suppress(OSError), tempfile.TemporaryFile(dir=directory) as one, tempfile.TemporaryFile(dir=directory) as two:
        one.write(b"x" * 4096)
        one.flush()
        fcntl.ioctl(two.fileno(), _FICLONE, one.fileno())
        return True
    return False


def used(records: Mapping[str, SandboxRecord]) -> Capacity:
    """What the sandboxes here were promised."""
    live = [record.spec.recipe for record in records.values() if record.condition != "exited"]
    return Capacity(
        cpu=round(sum(recipe.cpu for recipe in live), 3),
        memory_mb=sum(recipe.memory_mb for recipe in live),
        disk_mb=sum(recipe.disk_mb for recipe in live),
        sandboxes=len(live),
    )
