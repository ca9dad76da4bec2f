"""``/etc/resolv.conf`` and ``/etc/hosts`` of a sandbox with a network (reference/miren-sandbox.md §4.6), in its own root.

Only where the root is a directory; a microVM's is a disk. They are written anew at each start, in place of whatever is there.
"""

from __future__ import annotations

import contextlib
import errno
import os
from collections.abc import Iterator
from typing import Final

from agents.drivers.driver import RuntimeFault, Spec
from agents.host.syscalls import open_in_root
from agents.network import ZONE

_OPTIONS: Final = "options timeout:2 attempts:3"


def tell_names(spec: Spec, project: str) -> None:
    """Write them. A root without ``/etc`` has no use for them. Raises ``network.names-untold``."""
    if not spec.gateway or not spec.root.is_dir():
        return
    own = spec.address.partition("/")[0]
    try:
        with _etc(spec) as etc:
            _put(etc, "resolv.conf", f"search {project}.{ZONE}\nnameserver {spec.gateway}\n{_OPTIONS}\n", spec.ids)
            _put(etc, "hosts", f"127.0.0.1 localhost\n::1 localhost\n{own} {spec.hostname} {spec.sandbox_id}\n", spec.ids)
    except FileNotFoundError:
        return
    except OSError as error:
        if error.errno in {errno.ENOSPC, errno.EDQUOT}:  # the node's affair, not the root's
            raise
        raise RuntimeFault("network.names-untold", f"/etc of {spec.sandbox_id}: {error}") from error


@contextlib.contextmanager
def _etc(spec: Spec) -> Iterator[int]:
    fd = open_in_root(spec.root, "/etc", os.O_PATH | os.O_DIRECTORY)
    try:
        yield fd
    finally:
        os.close(fd)


def _put(directory: int, name: str, text: str, owner: int) -> None:
    """Instead of what is there, which may be a link to anywhere."""
    with contextlib.suppress(FileNotFoundError):
        os.unlink(name, dir_fd=directory)
    fd = os.open(name, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC, 0o644, dir_fd=directory)
    with os.fdopen(fd, "w", encoding="utf-8") as file:
        file.write(text)
        os.fchmod(fd, 0o644)
        if owner:
            os.fchown(fd, owner, owner)
