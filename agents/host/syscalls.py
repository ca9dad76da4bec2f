"""System calls that Python 3.11 has no function for. All raise ``OSError`` with the call's errno.

A helper process would cost 1-7 ms each (reference/runtimes.md §11, fast path 4); mount(2) from here costs 0.2 ms.
"""

from __future__ import annotations

import contextlib
import ctypes
import fcntl
import os
import struct
from collections.abc import Iterator
from pathlib import Path
from typing import Final

CLONE_FS: Final = 0x00000200
CLONE_NEWNS: Final = 0x00020000
CLONE_NEWUTS: Final = 0x04000000
CLONE_NEWNET: Final = 0x40000000

MS_RDONLY: Final = 0x1
MS_NOSUID: Final = 0x2
MS_NODEV: Final = 0x4
MS_BIND: Final = 0x1000
MS_REC: Final = 0x4000
MS_PRIVATE: Final = 1 << 18
MS_SLAVE: Final = 1 << 19
MS_SHARED: Final = 1 << 20

MNT_DETACH: Final = 0x2

RESOLVE_NO_MAGICLINKS: Final = 0x02
RESOLVE_IN_ROOT: Final = 0x10

_PR_SET_CHILD_SUBREAPER: Final = 36
_PR_GET_CHILD_SUBREAPER: Final = 37
_SYS_OPEN_TREE: Final = 428  # numbers since Linux 5.0 are the same on every architecture
_SYS_MOVE_MOUNT: Final = 429
_SYS_OPENAT2: Final = 437
_SYS_MOUNT_SETATTR: Final = 442
_FALLOC_FL_KEEP_SIZE: Final = 0x01
_FALLOC_FL_PUNCH_HOLE: Final = 0x02
_FIFREEZE: Final = 0xC0045877
_FITHAW: Final = 0xC0045878
_AT_FDCWD: Final = -100
_AT_EMPTY_PATH: Final = 0x1000
_OPEN_TREE_CLONE: Final = 1
_MOVE_MOUNT_F_EMPTY_PATH: Final = 0x04
_MOUNT_ATTR_IDMAP: Final = 0x00100000

_libc = ctypes.CDLL(None, use_errno=True)


def _checked(result: int, what: str) -> int:
    if result < 0:
        code = ctypes.get_errno()
        raise OSError(code, os.strerror(code), what)
    return result


def mount(source: str, target: str | Path, fstype: str = "", flags: int = 0, data: str = "") -> None:
    """Mount a file system; ``data`` longer than a page (4096 bytes) is EINVAL."""
    arguments = (source.encode(), str(target).encode(), fstype.encode() or None, ctypes.c_ulong(flags), data.encode() or None)
    _checked(_libc.mount(*arguments), str(target))


def punch(fd: int, size: int) -> None:
    """Give the first ``size`` bytes of a file back to its file system; they read as zeros. Not every file system can."""
    mode = ctypes.c_int(_FALLOC_FL_KEEP_SIZE | _FALLOC_FL_PUNCH_HOLE)
    _checked(_libc.fallocate(ctypes.c_int(fd), mode, ctypes.c_long(0), ctypes.c_long(size)), "fallocate")


def umount(target: str | Path, flags: int = 0) -> None:
    """Take a mount away."""
    _checked(_libc.umount2(str(target).encode(), flags), str(target))


def freeze(mount_point: Path, *, on: bool) -> None:
    """Write everything out and let nobody write to that file system any more, or let them again. Already so: EBUSY, EINVAL."""
    fd = os.open(mount_point, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        fcntl.ioctl(fd, _FIFREEZE if on else _FITHAW, 0)
    finally:
        os.close(fd)


def clone_tree(directory: Path) -> int:
    """A descriptor of a mount of ``directory`` (without what is mounted in it) that is attached nowhere, and ends with the descriptor."""
    path = os.fsencode(directory)
    return _checked(_libc.syscall(_SYS_OPEN_TREE, _AT_FDCWD, path, _OPEN_TREE_CLONE | os.O_CLOEXEC), str(directory))


def attach_tree(mount_fd: int, target: Path) -> None:
    """Put a mount that is attached nowhere at ``target``."""
    place = os.fsencode(target)
    _checked(_libc.syscall(_SYS_MOVE_MOUNT, mount_fd, b"", _AT_FDCWD, place, _MOVE_MOUNT_F_EMPTY_PATH), str(target))


def map_ids(mount_fd: int, userns_fd: int) -> None:
    """Show the files of a mount that is attached nowhere with the owners that the user namespace says."""
    attributes = struct.pack("=QQQQ", _MOUNT_ATTR_IDMAP, 0, 0, userns_fd)
    _checked(_libc.syscall(_SYS_MOUNT_SETATTR, mount_fd, b"", _AT_EMPTY_PATH, attributes, len(attributes)), "mount_setattr")


def unshare(flags: int) -> None:
    """Leave shared namespaces: of the calling thread alone and the threads that it starts from then on."""
    _checked(_libc.unshare(flags), "unshare")


def setns(fd: int, flags: int) -> None:
    """Enter a namespace: of the calling thread alone."""
    _checked(_libc.setns(fd, flags), "setns")


def become_subreaper() -> None:
    """Make this process the parent of its descendants' orphans, so that it, not PID 1, sees how they end."""
    _checked(_libc.prctl(_PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0), "prctl")


def is_subreaper() -> bool:
    """Whether ``become_subreaper`` was called in this process."""
    value = ctypes.c_int(0)
    _checked(_libc.prctl(_PR_GET_CHILD_SUBREAPER, ctypes.byref(value), 0, 0, 0), "prctl")
    return bool(value.value)


@contextlib.contextmanager
def acting_as(owner: int | None) -> Iterator[None]:
    """Within the block this thread makes files as that user and group (setfsuid(2)); None: as itself.

    Nobody else can make one in a file system of a user namespace that does not map them. The block must not wait for anything.
    """
    if owner is None:
        yield
        return
    user, group = _libc.setfsuid(owner), _libc.setfsgid(owner)  # they say who it was, and never fail
    try:
        yield
    finally:
        _libc.setfsgid(group)
        _libc.setfsuid(user)


def open_in_root(root: Path, path: str, flags: int = os.O_RDONLY, mode: int = 0) -> int:
    """Open ``path`` as a process chrooted to ``root`` would: no symlink, ``..`` or race leads out of it.

    A sandbox owns its root and may put any symlink there at any moment, so checking first and opening then is not enough.
    """
    directory = os.open(root, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        how = struct.pack("=QQQ", flags | os.O_CLOEXEC, mode, RESOLVE_IN_ROOT | RESOLVE_NO_MAGICLINKS)
        return _checked(_libc.syscall(_SYS_OPENAT2, directory, path.encode(), how, len(how)), path)
    finally:
        os.close(directory)
