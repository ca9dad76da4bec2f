"""Network namespaces that are files: made in a throw-away thread, kept by a bind mount in the data directory.

Not under /run/netns: mounts there belong to the mount namespace of the agent alone and would vanish with it (``agents.drivers.hostns``).
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Final

from agents.host import syscalls
from agents.host.elsewhere import elsewhere
from agents.network.rtnetlink import Route

_LOW_PORTS: Final = Path("/proc/sys/net/ipv4/ip_unprivileged_port_start")
"""Of the network namespace of whoever opens it. Ports below 1024 are nothing special in a sandbox's own network, and its root, which is
root in a user namespace of its own only, has no right over one that the node made."""


@contextmanager
def create(path: Path) -> Iterator[tuple[int, Route]]:
    """A new namespace, mounted on ``path``, its loopback up; within the block a descriptor of it and a ``Route`` that speaks for it."""
    fd, route = elsewhere(_made)
    try:
        path.touch(mode=0o600)
        syscalls.mount(f"/proc/self/fd/{fd}", path, "", syscalls.MS_BIND)
        loopback = route.index("lo")
        if loopback is not None:
            route.up(loopback)
        yield fd, route
    finally:
        route.close()
        os.close(fd)


def exists(path: Path) -> bool:
    """Mounted, and not only the file that it is mounted on: an open file of nsfs has device and inode of its own."""
    return path.exists() and path.stat().st_dev != path.parent.stat().st_dev


def remove(path: Path) -> None:
    """Let go of it. It lives on as long as a process is in it."""
    while exists(path):
        syscalls.umount(path, syscalls.MNT_DETACH)
    path.unlink(missing_ok=True)


def _made() -> tuple[int, Route]:
    syscalls.unshare(syscalls.CLONE_NEWNET)
    _LOW_PORTS.write_text("0", encoding="ascii")
    return os.open("/proc/thread-self/ns/net", os.O_RDONLY | os.O_CLOEXEC), Route()
