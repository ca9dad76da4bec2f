"""The initramfs of microVMs: the guest agent as ``/init``, and the modules that Debian's kernel does not have built in.

Written here rather than by ``cpio``: the same input gives the same bytes, and nothing has to be installed for it.
"""

from __future__ import annotations

import stat
from collections.abc import Iterator, Mapping
from typing import Final

EARLY: Final = ("virtio_ring", "virtio", "virtio_mmio", "virtio_console", "failover", "net_failover", "virtio_net")
LATE: Final = ("virtio_blk",)
"""Modules in the order in which they are loaded (reference/runtimes.md §4). The late ones when the machine learns which disk it has."""

RECIPE: Final = 1
"""To be raised when the same agent and kernel give another initramfs: it is part of the guest image's version."""

_DIRECTORIES: Final = ("dev", "disk", "modules", "proc", "sys")


def build(agent: bytes, modules: Mapping[str, bytes]) -> bytes:
    """A ``newc`` archive, uncompressed: unpacking it would cost an emulated processor more than reading it.

    What the kernel has built in is not among the modules, and left out.
    """
    entries = [(name, stat.S_IFDIR | 0o755, b"") for name in _DIRECTORIES]
    entries.append(("init", stat.S_IFREG | 0o755, agent))
    for name, wanted in (("early", EARLY), ("late", LATE)):
        there = [module for module in wanted if module in modules]
        entries.append((f"modules/{name}", stat.S_IFREG | 0o644, "".join(f"{module}\n" for module in there).encode()))
        entries += [(f"modules/{module}.ko", stat.S_IFREG | 0o644, modules[module]) for module in there]
    return b"".join(_archive(entries))


def _archive(entries: list[tuple[str, int, bytes]]) -> Iterator[bytes]:
    """Documentation/driver-api/early-userspace/buffer-format.rst of the kernel. The console is there before devtmpfs is."""
    for number, (name, mode, data) in enumerate(entries, 1):
        yield _member(number, name, mode, data)
    yield _member(len(entries) + 1, "dev/console", stat.S_IFCHR | 0o600, b"", (5, 1))
    yield _member(0, "TRAILER!!!", 0, b"")


def _member(number: int, name: str, mode: int, data: bytes, device: tuple[int, int] = (0, 0)) -> bytes:
    fields = (number, mode, 0, 0, 1, 0, len(data), 0, 0, *device, len(name) + 1, 0)
    head = b"070701" + b"".join(b"%08X" % field for field in fields) + name.encode() + b"\0"
    return _padded(head) + _padded(data)


def _padded(data: bytes) -> bytes:
    return data + bytes(-len(data) % 4)
