"""Images mounted, and really unmounted. Never two devices of one image: each would have a cache of its own, and ruin the other's."""

from __future__ import annotations

import asyncio
import contextlib
import errno
import time
from pathlib import Path
from typing import Final

from agents.drivers.driver import RuntimeFault
from agents.host import loop, syscalls
from agents.volumes import filesystems

UNMOUNT_S: Final = 5.0
"""How long a mount may take to go when its sandbox is down: a start beside it may hold a copy of it for a moment."""
_FLAGS: Final = syscalls.MS_NOSUID | syscalls.MS_NODEV


def mount(image: Path, place: Path, filesystem: str) -> None:
    """Have the image mounted there; already so is fine. Raises ``disk.unmountable``."""
    if place.is_mount():
        return
    options = filesystems.FILESYSTEMS[filesystem].options
    try:
        if held := loop.devices_of(image):  # somewhere it still is: the same device is the same file system
            syscalls.mount(held[0], place, filesystem, _FLAGS, options)
            return
        with loop.attached(image, writable=True) as device:
            syscalls.mount(device, place, filesystem, _FLAGS, options)
    except OSError as error:
        retryable = error.errno in {errno.EBUSY, errno.ENOMEM}
        raise RuntimeFault("disk.unmountable", f"{filesystem}: {error.strerror}", retryable=retryable) from error


async def unmount(image: Path, place: Path) -> None:
    """Have nothing of it mounted anywhere, and its device gone. Raises ``disk.still-mounted`` (retryable)."""
    deadline = time.monotonic() + UNMOUNT_S
    while not await asyncio.to_thread(_gone, image, place):
        if time.monotonic() > deadline:
            raise RuntimeFault("disk.still-mounted", f"something still uses {place.parent.name}", retryable=True)
        await asyncio.sleep(0.02)


def _gone(image: Path, place: Path) -> bool:
    while place.is_mount():
        try:
            syscalls.umount(place)
        except OSError as error:
            if error.errno != errno.EBUSY:
                raise
            return False
    return not loop.devices_of(image)


async def grow(image: Path, place: Path, filesystem: str) -> None:
    """Let the mounted file system fill its image, which has grown. Raises ``disk.grow-failed``."""
    try:
        (device,) = loop.devices_of(image)
        loop.grown(device)
    except (OSError, ValueError) as error:
        raise RuntimeFault("disk.grow-failed", str(error)) from error
    if complaint := await filesystems.run(filesystems.FILESYSTEMS[filesystem].grow(device, place)):
        raise RuntimeFault("disk.grow-failed", complaint)


def thaw(place: Path) -> None:
    """Let it be written to again, if it is mounted and somebody has frozen it; never the file system that it would be mounted in."""
    if place.is_mount():
        with contextlib.suppress(OSError):
            syscalls.freeze(place, on=False)
