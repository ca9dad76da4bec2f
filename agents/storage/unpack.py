"""The tree inside an ext4 file, taken out without mounting it: by debugfs, which needs no rights at all.

debugfs gives each name of a hard link a file of its own, drops the set-user-id, set-group-id and sticky bits, and leaves extended
attributes behind: those are put back from its listings. Without root only attributes of the ``user.`` kind can be: file capabilities are
lost, which no sandbox of ours would be given anyhow (no new privileges). Device nodes and sockets are left out.
"""

from __future__ import annotations

import asyncio
import os
import stat
from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Final

from agents.drivers.driver import RuntimeFault
from agents.host import spawn
from agents.storage.attributes import restore_attributes
from agents.storage.trees import make_accessible

_UNPACK_S: Final = 3600.0
_LISTING: Final = 256 << 20
_SPECIAL: Final = stat.S_ISUID | stat.S_ISGID | stat.S_ISVTX
_ECHO: Final = "debugfs: ls -p "


async def unpack(ext4: Path, target: Path) -> None:
    """Fill the directory ``target``. Without root everything becomes the user's own, readable to him."""
    done = await _debugfs(ext4, f'rdump / "{target}"\n')
    complaints = [line for line in done.stderr.decode(errors="replace").splitlines() if not _harmless(line)]
    if done.code != 0 or complaints:
        raise RuntimeFault("artifact.unreadable", "; ".join(complaints)[:2000] or done.complaint())
    folders = await asyncio.to_thread(_folders, target)
    listing = await _debugfs(ext4, "".join(f'ls -p "{folder}"\n' for folder in folders))
    entries = [*_entries(listing.stdout.decode(errors="surrogateescape"), folders)]
    first = await asyncio.to_thread(_restore, entries, target)
    await restore_attributes(first, partial(_debugfs, ext4))
    if os.geteuid() != 0:
        await asyncio.to_thread(make_accessible, target)


async def _debugfs(ext4: Path, script: str) -> spawn.Finished:
    command = ["debugfs", "-f", "-", str(ext4)]
    try:
        return await spawn.run(command, stdin=script.encode(errors="surrogateescape"), timeout_s=_UNPACK_S, max_output=_LISTING)
    except FileNotFoundError as error:
        raise RuntimeFault("storage.no-debugfs", "debugfs is not installed (apt-get install e2fsprogs)") from error


def _harmless(line: str) -> bool:
    """Debugfs introduces itself on stderr, and without root it cannot give files away."""
    return line.startswith("debugfs 1.") or (os.geteuid() != 0 and "while changing ownership" in line) or not line.strip()


def _folders(target: Path) -> list[str]:
    """Every directory as debugfs calls it; a name with a quote or a newline cannot be said to it."""
    found = ["/" + str(Path(directory).relative_to(target)).removeprefix(".") for directory, _, _ in os.walk(target)]
    return [name for name in found if '"' not in name and "\n" not in name]


@dataclass(frozen=True, slots=True)
class _Entry:
    """A name in a folder, and what it names."""

    folder: str
    name: str
    inode: int
    mode: int


def _restore(entries: list[_Entry], target: Path) -> dict[int, Path]:
    """Mode bits and hard links. Returns a path for each file and directory by its inode's number in the image."""
    first: dict[int, Path] = {}
    for entry in entries:
        kind, path = stat.S_IFMT(entry.mode), target / entry.folder.lstrip("/") / entry.name
        if entry.name == ".." or kind not in (stat.S_IFREG, stat.S_IFDIR) or path.is_symlink() or not path.exists():
            continue
        if kind == stat.S_IFREG and entry.inode in first:
            path.unlink()
            path.hardlink_to(first[entry.inode])
            continue
        first.setdefault(entry.inode, path)
        if entry.mode & _SPECIAL and entry.name != ".":
            path.chmod(stat.S_IMODE(entry.mode))
    return first


def _entries(listing: str, folders: list[str]) -> Iterator[_Entry]:
    """From lines like ``/14/104755/0/0/su/35664/``, inode, mode, owner, group, name, size, each folder's after the echo of its command."""
    following = iter(folders)
    folder = ""
    for line in listing.splitlines():
        if line.startswith(_ECHO):
            folder = next(following, "")
        elif (fields := line.split("/")) and len(fields) == 8 and fields[2].isdigit():
            yield _Entry(folder, fields[5], int(fields[1]), int(fields[2], 8))
