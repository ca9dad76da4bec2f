"""The guest image: an artifact like any other, with a version that replicas are bound to (reference/cubesandbox.md §6).

One directory per version, never changed once it is there; ``current`` names the one that new machines boot. Its version says which kernel
it has and, by a digest, which guest agent and which recipe it was made by: any change of them is another version.
"""

from __future__ import annotations

import asyncio
import contextlib
import fcntl
import hashlib
import json
import os
import shutil
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from agents.drivers.driver import RuntimeFault
from agents.guest import initramfs, kernel, uses
from agents.host import spawn

SOURCES: Final = Path(__file__).parent / "agent"
_FLAGS: Final = ("-std=gnu11", "-O2", "-Wall", "-Wextra", "-static", "-s")
_COMPILE_S: Final = 120.0
_CURRENT: Final = "current"


@dataclass(frozen=True, slots=True)
class GuestImage:
    """``directory`` holds ``vmlinuz``, ``initrd``, and what drivers keep of machines that have booted it."""

    version: str
    directory: Path

    @property
    def vmlinuz(self) -> Path:
        return self.directory / "vmlinuz"

    @property
    def initrd(self) -> Path:
        return self.directory / "initrd"


def shelf() -> Path:
    """Where guest images are kept: ``STRAND_GUEST_DIR``, else the user's cache directory. They are the same for every installation."""
    said = os.environ.get("STRAND_GUEST_DIR") or os.environ.get("XDG_CACHE_HOME")
    cache = Path(said) if said else Path.home() / ".cache"
    return cache if os.environ.get("STRAND_GUEST_DIR") else cache / "strandline" / "guest"


def current(directory: Path) -> GuestImage | None:
    """The one that new machines boot; None when none was built."""
    try:
        version = os.readlink(directory / _CURRENT)  # noqa: PTH115  # a name, not a path
    except OSError:
        return None
    return GuestImage(version, directory / version)


async def ensure(directory: Path) -> GuestImage:
    """The current image if it has this program's guest agent, else one that does, over the kernel that is there.

    Raises ``guest.no-kernel``, ``guest.no-compiler``, ``guest.build-failed``.
    """
    there = current(directory)
    return there if there is not None and there.version.endswith(source_digest()) else await build(directory)


async def build(directory: Path, *, upgrade: bool = False, own_kernel: Path | None = None) -> GuestImage:
    """Make an image and make it the current one. ``upgrade``: over the newest kernel that the package lists have. Raises as ``ensure``."""
    await asyncio.to_thread(directory.mkdir, mode=0o700, parents=True, exist_ok=True)
    with await asyncio.to_thread(_locked, directory):
        base = await asyncio.to_thread(kernel.keep, own_kernel, directory) if own_kernel else await _kernel(directory, upgrade=upgrade)
        version = f"{(base / 'version').read_text(encoding='ascii').strip()}-{source_digest()}"
        if not (directory / version).is_dir():
            await _make(directory, version, base)
        os.utime(directory / version)
        _point(directory, version)
        await asyncio.to_thread(uses.prune, directory, directory / version)
        return GuestImage(version, directory / version)


def source_digest() -> str:
    """Which guest agent and which recipe this program has."""
    digest = hashlib.sha256(json.dumps([initramfs.RECIPE, initramfs.EARLY, initramfs.LATE, _FLAGS]).encode())
    for path in _sources("*.[ch]"):
        digest.update(path.name.encode() + b"\0" + path.read_bytes())
    return digest.hexdigest()[:12]


def _sources(pattern: str) -> list[Path]:
    return sorted(SOURCES.glob(pattern))


def _locked(directory: Path) -> contextlib.ExitStack:
    """One builder at a time, also of different processes."""
    stack = contextlib.ExitStack()
    file = stack.enter_context((directory / ".lock").open("a"))
    fcntl.flock(file, fcntl.LOCK_EX)
    return stack


async def _kernel(directory: Path, *, upgrade: bool) -> Path:
    if not upgrade and (there := _kernels(directory)):
        return there[-1]
    package = await kernel.newest()
    found = directory / f"kernel-{package.removeprefix('linux-image-')}"
    if not kernel.complete(found):
        await kernel.fetch(package, found)
    return found


def _kernels(directory: Path) -> list[Path]:
    """Those that are here and have what machines need, the newest last."""
    return sorted((path for path in directory.glob("kernel-*") if kernel.complete(path)), key=lambda path: path.stat().st_mtime)


async def _make(directory: Path, version: str, base: Path) -> None:
    with _draft(directory) as draft:
        await _compile(draft / "agent")
        modules = {path.stem: path.read_bytes() for path in sorted((base / "modules").glob("*.ko"))}
        (draft / "initrd").write_bytes(initramfs.build((draft / "agent").read_bytes(), modules))
        (draft / "agent").unlink()
        shutil.copyfile(base / "vmlinuz", draft / "vmlinuz")
        draft.rename(directory / version)


@contextlib.contextmanager
def _draft(directory: Path) -> Iterator[Path]:
    draft = Path(tempfile.mkdtemp(prefix=".image-", dir=directory))
    try:
        yield draft
    finally:
        shutil.rmtree(draft, ignore_errors=True)


async def _compile(out: Path) -> None:
    argv = ["gcc", *_FLAGS, "-o", str(out), *map(str, _sources("*.c"))]
    try:
        done = await spawn.run(argv, timeout_s=_COMPILE_S)
    except FileNotFoundError as error:
        raise RuntimeFault("guest.no-compiler", "gcc is not installed (apt-get install gcc libc6-dev)") from error
    if done.code != 0:
        raise RuntimeFault("guest.build-failed", done.complaint())


def _point(directory: Path, version: str) -> None:
    link = directory / f".{_CURRENT}-{os.getpid()}"
    link.unlink(missing_ok=True)
    link.symlink_to(version)
    link.replace(directory / _CURRENT)
