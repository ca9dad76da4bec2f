"""A place where a container's root is found by a runtime that has no rights on the host any more.

In a user namespace of its own, crun walks to the root as a user who may not enter the agent's directory (0700), nor perhaps what lies
above it. So it is started in a mount namespace of its own, in which the root lies on a folder that everybody may enter and that it does not
need. What holds the container is another namespace again, made from that one; this one goes with the runtime's process.
"""

from __future__ import annotations

import threading
from collections.abc import Callable
from pathlib import Path
from typing import Final

from agents.host import syscalls

_FOLDERS: Final = ("/mnt", "/media", "/srv", "/opt", "/home")


class Stage:
    """``folder``: where roots are found."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    @classmethod
    def beside(cls, *needed: Path) -> Stage | None:
        """One that hides none of these."""
        found = (Path(name) for name in _FOLDERS if Path(name).is_dir() and not Path(name).is_symlink())
        folder = next((folder for folder in found if not any(path.resolve().is_relative_to(folder) for path in needed)), None)
        return None if folder is None else cls(folder)

    def start(self, root: Path, begin: Callable[[], int]) -> int:
        """Call ``begin``, which starts a process and gives its pid, where ``root`` lies on the folder. Raises what it raises."""
        outcome: list[int | BaseException] = []

        def visit() -> None:
            """In a thread that ends here: it has left the host's mounts for good."""
            try:
                syscalls.unshare(syscalls.CLONE_NEWNS)
                syscalls.mount("none", "/", "", syscalls.MS_PRIVATE | syscalls.MS_REC)
                syscalls.mount(str(root), self.folder, "", syscalls.MS_BIND)
                outcome.append(begin())
            except BaseException as error:  # noqa: BLE001 - raised again outside
                outcome.append(error)

        thread = threading.Thread(target=visit)
        thread.start()
        thread.join()
        (result,) = outcome
        if isinstance(result, BaseException):
            raise result
        return result
