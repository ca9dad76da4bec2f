"""The choice of root storage: overlay mounts where this host lets this user make them, copies elsewhere."""

from __future__ import annotations

import os
import tempfile
from pathlib import Path

from agents.host import syscalls
from agents.storage.base import Inventory
from agents.storage.copies import CopyRoots
from agents.storage.overlay import OverlayRoots

__all__ = ["CopyRoots", "Inventory", "OverlayRoots", "choose_roots"]


def choose_roots(directory: Path) -> OverlayRoots | CopyRoots:
    """Tried, not guessed: inside other containers root may not mount, and an overlay cannot be the upper of an overlay."""
    directory.mkdir(parents=True, exist_ok=True, mode=0o700)
    return OverlayRoots(directory) if _overlay_works(directory) else CopyRoots(directory)


def _overlay_works(directory: Path) -> bool:
    if os.geteuid() != 0:
        return False
    with tempfile.TemporaryDirectory(prefix=".probe-", dir=directory) as probe:
        for name in ("lower", "upper", "work", "root"):
            Path(probe, name).mkdir()
        target = Path(probe, "root")
        try:
            syscalls.mount("strandline", target, "overlay", 0, f"lowerdir={probe}/lower,upperdir={probe}/upper,workdir={probe}/work")
        except OSError:
            return False
        syscalls.umount(target, syscalls.MNT_DETACH)
        return True
