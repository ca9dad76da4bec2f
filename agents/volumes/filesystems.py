"""File systems that this host can make and grow, and how.

ext4 grows in its image while it is not mounted; mounted, the kernel asks for CAP_SYS_RESOURCE, which root of a container often lacks. The
others grow only while they are mounted.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from agents.drivers.driver import RuntimeFault
from agents.host import spawn

_TOOL_S: Final = 300.0
_CAP_SYS_RESOURCE: Final = 24
_E2FSCK_MENDED: Final = 1
_PATH: Final = os.pathsep.join([os.environ.get("PATH", os.defpath), "/usr/local/sbin", "/usr/sbin", "/sbin"])
"""``PATH`` of an ordinary user lacks where these tools live."""


@dataclass(frozen=True, slots=True)
class Filesystem:
    """``make``: of an image; ``grow``: of a device and where it is mounted; ``grow_image``: of an image; ``options`` of its mounts."""

    make: Callable[[Path], Sequence[str]]
    grow: Callable[[str, Path], Sequence[str]]
    tools: tuple[str, ...]
    grow_image: Callable[[Path], Sequence[Sequence[str]]] | None = None
    needs: int | None = None
    """A capability without which it does not grow while it is mounted."""
    options: str = ""
    copies: bool = True
    """Whether a copy of an image may be mounted beside it."""


FILESYSTEMS: Final = {
    "ext4": Filesystem(
        lambda image: ["mkfs.ext4", "-q", "-F", "-m", "0", "-E", "lazy_itable_init=1,nodiscard", str(image)],
        lambda device, _: ["resize2fs", device],
        ("mkfs.ext4", "e2fsck", "resize2fs"),
        lambda image: [["e2fsck", "-f", "-p", str(image)], ["resize2fs", str(image)]],
        _CAP_SYS_RESOURCE,
    ),
    "xfs": Filesystem(
        lambda image: ["mkfs.xfs", "-q", "-K", str(image)],
        lambda _, mounted: ["xfs_growfs", "-d", str(mounted)],
        ("mkfs.xfs", "xfs_growfs"),
        options="nouuid",  # a copy has the UUID of what it was copied from
    ),
    "btrfs": Filesystem(
        lambda image: ["mkfs.btrfs", "-q", "-K", str(image)],
        lambda _, mounted: ["btrfs", "filesystem", "resize", "max", str(mounted)],
        ("mkfs.btrfs", "btrfs"),
        copies=False,  # the kernel takes two images with one UUID for parts of one file system
    ),
}


def available() -> tuple[str, ...]:
    """Those whose tools are installed and that the kernel says it knows."""
    known = Path("/proc/filesystems").read_text(encoding="ascii").split()
    return tuple(name for name, fs in FILESYSTEMS.items() if name in known and all(shutil.which(tool, path=_PATH) for tool in fs.tools))


def grows_mounted(name: str) -> bool:
    """Whether this process may grow such a file system while it is mounted."""
    needs = FILESYSTEMS[name].needs
    effective = next(
        line.split()[1] for line in Path("/proc/self/status").read_text(encoding="ascii").splitlines() if line[:7] == "CapEff:"
    )
    return needs is None or bool(int(effective, 16) >> needs & 1)


async def grow_image(name: str, image: Path) -> bool:
    """Let an unmounted file system fill its image; False: it has to be mounted for that. Raises ``disk.grow-failed``."""
    commands = FILESYSTEMS[name].grow_image
    if commands is None:
        return False
    for argv in commands(image):
        if complaint := await run(argv, fine=(0, _E2FSCK_MENDED) if argv[0] == "e2fsck" else (0,)):
            raise RuntimeFault("disk.grow-failed", complaint)
    return True


async def run(argv: Sequence[str], fine: Sequence[int] = (0,)) -> str:
    """Run one of the tools; what it complains about, or nothing. Raises ``disk.unsupported`` where there is none."""
    program = shutil.which(argv[0], path=_PATH)
    if program is None:
        raise RuntimeFault("disk.unsupported", f"{argv[0]} is not installed on this node")
    done = await spawn.run([program, *argv[1:]], timeout_s=_TOOL_S)
    return "" if done.code in fine else done.complaint() or f"exit code {done.code}"
