"""Loop devices: a file as a read-only disk. The kernel lets go of it by itself when its file system is unmounted."""

from __future__ import annotations

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
_READ_ONLY: Final = 1
_AUTOCLEAR: Final = 4
_INFO: Final = struct.Struct("=5Q4I64s64s32s2Q")
_CONFIG: Final = struct.Struct(f"=2I{_INFO.size}s64x")
_ATTEMPTS: Final = 50


@contextmanager
def attached(file: Path) -> Iterator[str]:
    """The device, to be mounted within the block; without a mount it is detached again at its end.

    Raises ``OSError`` where there are no loop devices, as in most containers.
    """
    backing = os.open(file, os.O_RDONLY | os.O_CLOEXEC)
    try:
        device, fd = _configure(backing, file)
    finally:
        os.close(backing)
    try:
        yield device
    finally:
        os.close(fd)


def _configure(backing: int, file: Path) -> tuple[str, int]:
    control = os.open("/dev/loop-control", os.O_RDWR | os.O_CLOEXEC)
    try:
        for _ in range(_ATTEMPTS):
            device = f"/dev/loop{fcntl.ioctl(control, _LOOP_CTL_GET_FREE)}"
            fd = os.open(device, os.O_RDONLY | os.O_CLOEXEC)
            try:
                info = _INFO.pack(0, 0, 0, 0, 0, 0, 0, 0, _READ_ONLY | _AUTOCLEAR, os.fsencode(file.name)[:63], b"", b"", 0, 0)
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
