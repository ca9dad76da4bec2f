"""A place where a container's root is found by a runtime that has no rights on the host any more.

In a user namespace of its own, crun walks to the root as a user who may not enter the agent's directory (0700), nor perhaps what lies
above it. So it is started by a thread that lives in a mount namespace of its own, where roots can be shown in a folder that everybody may
enter. There it sees what is mounted on the host later, roots and network namespaces; the host never sees what is mounted there, and it is
gone with the agent. One namespace for all starts: to make one for each, and let it go, costs 3 ms.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import Final

from agents.drivers import hostns
from agents.drivers.driver import Spec
from agents.host import idmap, spawn, syscalls

_FOLDERS: Final = ("/mnt", "/media", "/srv", "/opt", "/home")


class Stage:
    """``folder``: below it roots are shown."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._thread = ThreadPoolExecutor(1, "stage", self._enter)

    @classmethod
    def beside(cls, *needed: Path) -> Stage | None:
        """One that hides none of these. None where there is no such folder, or where mounts below the first one do not spread."""
        if not hostns.shared(needed[0].resolve()):
            return None
        found = (Path(name) for name in _FOLDERS if Path(name).is_dir() and not Path(name).is_symlink())
        folder = next((folder for folder in found if not any(path.resolve().is_relative_to(folder) for path in needed)), None)
        return None if folder is None else cls(folder)

    def _enter(self) -> None:
        syscalls.unshare(syscalls.CLONE_NEWNS)
        syscalls.mount("none", "/", "", syscalls.MS_SLAVE | syscalls.MS_REC)
        syscalls.mount("strandline", self._folder, "tmpfs", syscalls.MS_NOSUID | syscalls.MS_NODEV, "size=1m,mode=711")

    @contextlib.contextmanager
    def showing(self, spec: Spec, name: str) -> Iterator[tuple[Spec, spawn.Within]]:
        """Within the block root and disks are found at the paths that are given, by what is started as is given.

        Disks as the sandbox's users see them. ``name`` is used once at a time.
        """
        place = self._folder / name
        disks = [self._folder / f"{name}.{number}" for number in range(len(spec.mounts))]

        def show() -> None:
            place.mkdir()
            syscalls.mount(str(spec.root), place, "", syscalls.MS_BIND)
            for mount, disk in zip(spec.mounts, disks, strict=True):
                disk.mkdir()
                idmap.show(mount.source, disk, spec.ids)

        def hide() -> None:
            for shown in (place, *disks):
                with contextlib.suppress(OSError):
                    syscalls.umount(shown, syscalls.MNT_DETACH)
                with contextlib.suppress(FileNotFoundError):
                    shown.rmdir()

        shown = self._thread.submit(show)

        def within(start: Callable[[], int]) -> int:
            def begin() -> int:
                shown.result()  # done by now: this is the same thread
                return start()

            return self._thread.submit(begin).result()

        try:
            mounts = tuple(replace(mount, source=disk) for mount, disk in zip(spec.mounts, disks, strict=True))
            yield replace(spec, root=place, mounts=mounts), within
        finally:
            self._thread.submit(hide)

    def close(self) -> None:
        self._thread.shutdown()
