"""The same files, seen as owned by other users: ID-mapped views of directory trees (mount_setattr(2), Linux 5.12).

A view is a mount that is attached nowhere: it lives as long as its descriptor, or as the overlay that it is a layer of, so that no death
of the agent leaves one behind. Overlays take such layers since Linux 6.15; before that they refuse them (EINVAL).
"""

from __future__ import annotations

import os
import subprocess
import tempfile
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from functools import cache
from pathlib import Path
from typing import Final

from agents.host import syscalls

RANGE: Final = 65536
"""Users of a sandbox: 0 to 65535, as in images."""
_FIRST: Final = 1_879_048_192
"""Up to 2^31 nobody else hands out host users (systemd, doc/UIDS-GIDS)."""
_RANGES: Final = 4096
_closing: Final = ThreadPoolExecutor(1, "idmap")
"""To let go of a mount takes the kernel 0.7 ms, which nobody need wait for."""


def range_of(mark: str) -> int:
    """The first host user of a node's range, from eight hexadecimal digits that are the node's own."""
    return _FIRST + int(mark[:8], 16) % _RANGES * RANGE


@contextmanager
def views(base: int) -> Iterator[Callable[[Path], str]]:
    """Within the block, a function that gives a path under which a directory's user 0 is ``base``, its user 1 ``base`` + 1 and so on.

    Without a ``base`` that is the directory itself. Raises ``OSError`` where the kernel or the file system cannot.
    """
    with ExitStack() as stack:

        def view(directory: Path) -> str:
            if not base:
                return str(directory)
            fd = syscalls.clone_tree(directory)
            stack.callback(_closing.submit, os.close, fd)
            syscalls.map_ids(fd, _namespace(base))
            return f"/proc/self/fd/{fd}"

        yield view


def show(directory: Path, place: Path, base: int) -> None:
    """Mount a view of ``directory`` (without what is mounted in it) at ``place``. Raises ``OSError``."""
    fd = syscalls.clone_tree(directory)
    try:
        syscalls.map_ids(fd, _namespace(base))
        syscalls.attach_tree(fd, place)
    finally:
        os.close(fd)


@cache
def _namespace(base: int) -> int:
    """A user namespace that says who is who. Besides the range it knows the host's root, as the first user beyond: an overlay makes its
    own files (work directory, whiteouts) as whoever mounts it, and who has no number in a layer cannot make any.
    """
    child = subprocess.Popen(["unshare", "--user", "--", "cat"], stdin=subprocess.PIPE, stdout=subprocess.PIPE, start_new_session=True)  # noqa: S607
    with child:
        if child.stdin is None or child.stdout is None:
            raise OSError("no pipes to unshare")
        child.stdin.write(b"x\n")
        child.stdin.flush()
        if child.stdout.readline() != b"x\n":  # once it answers, it is in its namespace
            raise OSError("unshare --user does not work here")
        for name in ("uid_map", "gid_map"):
            Path(f"/proc/{child.pid}/{name}").write_text(f"0 {base} {RANGE}\n{RANGE} 0 1\n", encoding="ascii")
        return os.open(f"/proc/{child.pid}/ns/user", os.O_RDONLY | os.O_CLOEXEC)


def overlay_works(directory: Path, base: int) -> bool:
    """Whether an overlay over views in ``directory`` can be made and written: tried, not guessed."""
    if os.geteuid() != 0:
        return False
    with tempfile.TemporaryDirectory(prefix=".idmap-", dir=directory) as probe:
        for name in ("lower", "upper", "work", "root"):
            Path(probe, name).mkdir()
        root = Path(probe, "root")
        try:
            with views(base) as view:
                top = view(Path(probe))
                data = f"lowerdir={view(Path(probe, 'lower'))},upperdir={top}/upper,workdir={top}/work"
                syscalls.mount("strandline", root, "overlay", syscalls.MS_NODEV, data)
            try:
                (root / "file").touch()
                return root.stat().st_uid == base
            finally:
                syscalls.umount(root, syscalls.MNT_DETACH)
        except OSError:
            return False
