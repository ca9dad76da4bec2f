"""The agent's private mount namespace, where crun works on hosts with both cgroup versions mounted.

crun refuses a v2 hierarchy beside v1 ones ("cgroups in hybrid mode not supported", reference/runtimes.md §1). An empty tmpfs over the v2
half, in a mount namespace of the agent's own, leaves the host as it was; what crun writes there vanishes with the agent. Mounts that must
outlive the agent - sandbox roots, network namespaces - lie under its data directory, which is shared with the host: the next agent
process finds them mounted.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import Final

from agents.host import cgroups, syscalls
from agents.host.elsewhere import elsewhere

_UNIFIED: Final = cgroups.MOUNT / "unified"
_host: int | None = None


def needed() -> bool:
    """Whether this process may, and must, leave the host's mount namespace for crun to work."""
    if os.geteuid() != 0 or cgroups.layout() is not cgroups.Layout.HYBRID:
        return False
    return bool((_UNIFIED / "cgroup.controllers").read_text(encoding="ascii").strip())


def enter(data: Path) -> bool:
    """Share ``data``, the agent's directory, and enter a private mount namespace if the host needs one. False: nothing was done.

    To be called once, first thing, from the main thread: threads that run already would stay outside.
    """
    if os.geteuid() != 0:
        return False
    data.mkdir(mode=0o700, parents=True, exist_ok=True)
    try:
        _share(data.resolve())
    except OSError:  # root of a container may often not mount: no driver that needs it will work
        return False
    if needed():
        _leave_the_host()
    return True


def _leave_the_host() -> None:
    global _host  # noqa: PLW0603  # a process has one way back, and it is this
    _host = os.open("/proc/self/ns/mnt", os.O_RDONLY | os.O_CLOEXEC)
    syscalls.unshare(syscalls.CLONE_NEWNS)
    syscalls.mount("none", cgroups.MOUNT, "", syscalls.MS_PRIVATE | syscalls.MS_REC)
    syscalls.mount("strandline", _UNIFIED, "tmpfs", syscalls.MS_NOSUID | syscalls.MS_NODEV, "size=1m,mode=755")


def _share(data: Path) -> None:
    if not shared(data):
        syscalls.mount(str(data), data, "", syscalls.MS_BIND)
        syscalls.mount("none", data, "", syscalls.MS_SHARED)


def leave(data: Path) -> None:
    """Undo what ``enter`` did to the host: the bind mount of ``data`` onto itself. For a purge, when nothing is mounted below it.

    Works from any process of the host's mount namespace, and from the one that entered.
    """
    data = data.resolve()
    _unmount_all(data)
    if _host is not None:
        host = _host

        def visit() -> None:
            """In the host's namespace; a thread may only change over when it shares nothing of its file system view."""
            syscalls.unshare(syscalls.CLONE_FS)
            syscalls.setns(host, syscalls.CLONE_NEWNS)
            _unmount_all(data)

        elsewhere(visit)


def _unmount_all(data: Path) -> None:
    while str(data) in (point for point, _ in _mounts()):
        syscalls.umount(data, syscalls.MNT_DETACH)


def shared(data: Path) -> bool:
    """Whether mounts below ``data`` (resolved) reach the other members of its peer group."""
    above = [(point, fields) for point, fields in _mounts() if data.is_relative_to(point)]
    _, fields = max(above, key=lambda item: len(item[0]))
    return any(field.startswith("shared:") for field in fields)


def _mounts() -> list[tuple[str, list[str]]]:
    """Mount points of this process with their propagation fields, in mount order (proc_pid_mountinfo(5))."""
    found: list[tuple[str, list[str]]] = []
    for line in Path("/proc/thread-self/mountinfo").read_text(encoding="utf-8", errors="surrogateescape").splitlines():
        words = line.split()
        found.append((words[4].encode().decode("unicode_escape"), words[6 : words.index("-", 6)]))
    return found
