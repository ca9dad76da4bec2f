"""Loop devices: a file as a disk. The kernel lets go of it by itself when its file system is unmounted."""

from __future__ import annotations

import contextlib
import errno
import fcntl
import os
import struct
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Final

_LOOP_CTL_GET_FREE: Final = 0x4C82
_LOOP_CONFIGURE: Final = 0x4C0A  # Linux 5.8: file, size and flags in one call
_LOOP_GET_STATUS64: Final = 0x4C05
_LOOP_SET_CAPACITY: Final = 0x4C07
_READ_ONLY: Final = 1
_AUTOCLEAR: Final = 4
_INFO: Final = struct.Struct("=5Q4I64s64s32s2Q")
_CONFIG: Final = struct.Struct(f"=2I{_INFO.size}s64x")
_ATTEMPTS: Final = 50


@contextmanager
def attached(file: Path, *, writable: bool = False) -> Iterator[str]:
    """The device, to be mounted within the block; without a mount it is detached again at its end.

    Raises ``OSError`` where there are no loop devices, as in most containers.
    """
    mode = os.O_RDWR if writable else os.O_RDONLY
    backing = os.open(file, mode | os.O_CLOEXEC)
    try:
        device, fd = _configure(backing, file, mode)
    finally:
        os.close(backing)
    try:
        yield device
    finally:
        os.close(fd)


def devices_of(file: Path) -> list[str]:
    """Devices that are this file now. A file system on one is in use somewhere, perhaps in a namespace that nobody here sees.

    By inode: the path that the kernel tells is that of the namespace in which the file was opened.
    """
    meant, found = file.stat(), []
    for bound in Path("/sys/block").glob("loop*/loop"):
        device = f"/dev/{bound.parts[3]}"
        with contextlib.suppress(OSError):
            if _backing(device) == (meant.st_dev, meant.st_ino):
                found.append(device)
    return sorted(found)


def _backing(device: str) -> tuple[int, int]:
    fd = os.open(device, os.O_RDONLY | os.O_CLOEXEC)
    try:
        told = _INFO.unpack(fcntl.ioctl(fd, _LOOP_GET_STATUS64, bytes(_INFO.size)))
    finally:
        os.close(fd)
    return int(told[0]), int(told[1])


def grown(device: str) -> None:
    """Let the device have its file's size. Raises ``OSError``."""
    fd = os.open(device, os.O_RDONLY | os.O_CLOEXEC)
    try:
        fcntl.ioctl(fd, _LOOP_SET_CAPACITY, 0)
    finally:
        os.close(fd)


def _configure(backing: int, file: Path, mode: int) -> tuple[str, int]:
    control = os.open("/dev/loop-control", os.O_RDWR | os.O_CLOEXEC)
    try:
        for _ in range(_ATTEMPTS):
            device = f"/dev/loop{fcntl.ioctl(control, _LOOP_CTL_GET_FREE)}"
            fd = os.open(device, mode | os.O_CLOEXEC)
            flags = _AUTOCLEAR | (_READ_ONLY if mode == os.O_RDONLY else 0)
            try:
                info = _INFO.pack(0, 0, 0, 0, 0, 0, 0, 0, flags, os.fsencode(file.name)[:63], b"", b"", 0, 0)
                fcntl.ioctl(fd, _LOOP_CONFIGURE, _CONFIG.pack(backing, 0, info))
            except OSError as error:
                os.close(fd)
                if error.errno != errno.EBUSY:  # somebody else was given the same free one
                    raise
            else:
                return device, fd
    finally:
        os.close(control)
    raise OSError(errno.EBUSY, "no loop device stayed free long enough to be taken", str(file))
