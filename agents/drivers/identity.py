"""Who a process inside a sandbox is, and what it finds: user, groups, environment, program.

Names are looked up in the sandbox's own files, opened so that no symlink in them leads to the host's.
"""

from __future__ import annotations

import os
import stat
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Final

from agents.drivers.driver import RuntimeFault
from agents.host.syscalls import open_in_root

DEFAULT_PATH: Final = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"
_MAX_FILE: Final = 1 << 20


@dataclass(frozen=True, slots=True)
class Who:
    uid: int = 0
    gid: int = 0
    groups: tuple[int, ...] = ()
    home: str = "/"


def resolve(root: Path, user: str) -> Who:
    """``""``, ``uid``, ``uid:gid``, ``name`` or ``name:group`` to numbers. Raises ``user.unknown`` for a name that is not there."""
    name, _, group = user.partition(":")
    entry = _find(root, "etc/passwd", name or "0")
    if entry is None and name and not name.isdigit():
        raise RuntimeFault("user.unknown", f"no user {name!r} in the sandbox's /etc/passwd")
    uid = int(entry[2]) if entry else int(name or 0)
    gid = int(entry[3]) if entry else 0
    if group:
        found = _find(root, "etc/group", group)
        if found is None and not group.isdigit():
            raise RuntimeFault("user.unknown", f"no group {group!r} in the sandbox's /etc/group")
        gid = int(found[2]) if found else int(group)
    if max(uid, gid) >= 1 << 32:
        raise RuntimeFault("user.unknown", f"{user!r} is no user")
    extra = () if group or entry is None else _groups_of(root, entry[0], gid)
    return Who(uid, gid, extra, entry[5] if entry and entry[5].startswith("/") else "/")


def environment(who: Who, *layers: Mapping[str, str]) -> dict[str, str]:
    """A usable environment: PATH and HOME unless a layer says otherwise; later layers win."""
    result = {"PATH": DEFAULT_PATH, "HOME": who.home}
    for layer in layers:
        result.update(layer)
    for name, value in result.items():
        if not name or "=" in name or "\0" in name or "\0" in value:
            raise RuntimeFault("sandbox.invalid-env", f"{name!r} cannot be an environment variable")
    return result


def why_not(root: Path, argv0: str, cwd: str, path: str) -> tuple[int, str] | None:
    """Why a program could not be executed: the code that a shell would give (126, 127) and the reason.

    Asked first, because every launcher has exit codes of its own for it. ``root`` may be ``/proc/<pid>/root``.
    """
    mode = _mode(root, cwd or "/")
    if mode is None or not stat.S_ISDIR(mode):
        return 126, f"{cwd}: no such directory"
    if "/" in argv0:
        places = [str(PurePosixPath("/", cwd, argv0))]
    else:
        places = [str(PurePosixPath("/", cwd, folder, argv0)) for folder in path.split(":") if folder]
    modes = [mode for place in places if (mode := _mode(root, place)) is not None]
    if any(stat.S_ISREG(mode) and mode & 0o111 for mode in modes):
        return None
    return (126, f"{argv0}: not executable") if modes else (127, f"{argv0}: not found")


def check_program(root: Path, argv0: str, cwd: str, path: str) -> None:
    """Refuse to start what cannot be executed."""
    if (reason := why_not(root, argv0, cwd, path)) is not None:
        raise RuntimeFault("sandbox.no-such-program" if reason[0] == 127 else "sandbox.not-executable", reason[1])


def read_text(root: Path, path: str) -> str:
    """A small text file of the root; empty when it is not there or not a file."""
    try:
        fd = open_in_root(root, path, os.O_RDONLY | os.O_NONBLOCK)
    except OSError:
        return ""
    with os.fdopen(fd, "rb") as file:
        if not stat.S_ISREG(os.fstat(fd).st_mode):
            return ""
        return file.read(_MAX_FILE).decode(errors="replace")


def _mode(root: Path, path: str) -> int | None:
    try:
        fd = open_in_root(root, path, os.O_PATH)
    except OSError:
        return None
    try:
        return os.fstat(fd).st_mode
    finally:
        os.close(fd)


def _find(root: Path, path: str, wanted: str) -> list[str] | None:
    """The passwd or group entry of a name or number; only whole entries with numbers where numbers belong."""
    need, numbers = (7, (2, 3)) if path.endswith("passwd") else (4, (2,))
    for line in read_text(root, path).splitlines():
        fields = line.split(":")
        if len(fields) >= need and all(fields[n].isdigit() for n in numbers) and wanted in (fields[0], fields[2]):
            return fields
    return None


def _groups_of(root: Path, name: str, primary: int) -> tuple[int, ...]:
    found = set()
    for line in read_text(root, "etc/group").splitlines():
        fields = line.split(":")
        if len(fields) >= 4 and fields[2].isdigit() and name in fields[3].split(","):
            found.add(int(fields[2]))
    return tuple(sorted(found - {primary}))
