"""Extended attributes out of an ext4 file, by debugfs: as far as whoever asks may set them."""

from __future__ import annotations

import asyncio
import os
import re
import tempfile
from collections.abc import Awaitable, Callable, Iterator, Mapping
from pathlib import Path
from typing import Final

from agents.host import spawn

Debugfs = Callable[[str], Awaitable[spawn.Finished]]

_ECHO: Final = re.compile(r"debugfs: ea_list <(\d+)>")
_ATTRIBUTE: Final = re.compile(r"  ([a-z]+\.[^\s\"]+) \(\d+\)")
_ANYBODY: Final = "user."
_NOBODY: Final = "trusted.overlay."
"""Means something to the kernel. Images never have it (``agents/images/unpack.py``)."""


async def restore_attributes(files: Mapping[int, Path], debugfs: Debugfs) -> None:
    """``files``: where each inode of the image, by its number, was unpacked to."""
    listed = await debugfs("".join(f"ea_list <{inode}>\n" for inode in files))
    wanted = [(inode, name) for inode, name in _listed(listed.stdout.decode(errors="replace")) if _may_set(name)]
    if not wanted:
        return
    with tempfile.TemporaryDirectory(prefix="strandline-attributes-") as folder:
        await debugfs("".join(f'ea_get -f "{folder}/{n}" <{inode}> "{name}"\n' for n, (inode, name) in enumerate(wanted)))
        await asyncio.to_thread(_set, [(files[inode], name, Path(folder, str(n))) for n, (inode, name) in enumerate(wanted)])


def _may_set(name: str) -> bool:
    return not name.startswith(_NOBODY) and (os.geteuid() == 0 or name.startswith(_ANYBODY))


def _listed(text: str) -> Iterator[tuple[int, str]]:
    """(inode, name) of lines like ``  user.colour (4) = "blue"``, each inode's after the echo of its command."""
    inode = 0
    for line in text.splitlines():
        if echo := _ECHO.match(line):
            inode = int(echo[1])
        elif found := _ATTRIBUTE.match(line):
            yield inode, found[1]


def _set(attributes: list[tuple[Path, str, Path]]) -> None:
    """Read-only files are made writable for a moment: who may set an attribute of his own depends on the mode."""
    for path, name, value in attributes:
        mode = path.stat().st_mode
        if os.geteuid() != 0 and not mode & 0o200:
            path.chmod(mode | 0o200)
        os.setxattr(path, name, value.read_bytes())
        if os.geteuid() != 0 and not mode & 0o200:
            path.chmod(mode)
