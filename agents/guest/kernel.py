"""The guest kernel: Debian's own cloud kernel, fetched and unpacked without root. Our own minimal one can take its place.

A kernel is a directory with ``vmlinuz``, ``version`` and ``modules/<name>.ko``; ``scripts/guest-kernel`` makes one of the same kind. One
that was fetched has also ``wanted``: the modules that were looked for in its package.
"""

from __future__ import annotations

import asyncio
import lzma
import os
import re
import shutil
import tempfile
from pathlib import Path
from typing import Final

from agents.drivers.driver import RuntimeFault
from agents.guest.initramfs import EARLY, LATE
from agents.host import spawn

PACKAGE: Final = "linux-image-cloud-amd64"
"""A metapackage: it depends on the newest one that the distribution has."""
_FETCH_S: Final = 300.0


WANTED: Final = "".join(f"{name}\n" for name in (*EARLY, *LATE))


def complete(kernel: Path) -> bool:
    """Whether it has every module that machines need now: fetched with it, or, in one without modules, built in."""
    try:
        return (kernel / "wanted").read_text(encoding="ascii") == WANTED
    except OSError:
        return (kernel / "vmlinuz").is_file() and not any((kernel / "modules").iterdir())


def keep(own: Path, shelf: Path) -> Path:
    """Put a kernel of our own making beside the fetched ones: the newest, and so the one that images are made of from now on."""
    kept = shelf / f"kernel-{(own / 'version').read_text(encoding='ascii').strip()}"
    with tempfile.TemporaryDirectory(prefix=".kernel-", dir=shelf) as name:
        draft = Path(name) / "kernel"
        shutil.copytree(own, draft, copy_function=shutil.copyfile)
        shutil.rmtree(kept, ignore_errors=True)
        draft.replace(kept)
    os.utime(kept)
    return kept


async def newest() -> str:
    """The name of the kernel package that the package lists offer now. Raises ``guest.no-kernel``."""
    done = await _try(["apt-cache", "depends", PACKAGE])
    found = re.search(r"Depends: (linux-image-[a-z0-9.+-]+)", done.stdout.decode(errors="replace"))
    if found is None:
        raise RuntimeFault("guest.no-kernel", f"the package lists have no {PACKAGE}: {done.complaint()} (apt-get update)", retryable=True)
    return found[1]


async def fetch(package: str, into: Path) -> None:
    """Have that package's kernel as the directory ``into``, which appears when it is complete. Raises ``guest.no-kernel``."""
    with tempfile.TemporaryDirectory(prefix=".kernel-", dir=into.parent) as name:
        work = Path(name)
        await _need(["apt-get", "download", package], work)
        [archive] = [found for found in os.listdir(work) if found.endswith(".deb")]  # noqa: PTH208 - a name, not a path
        version = (await _need(["dpkg-deb", "--field", archive, "Version"], work)).stdout.decode().strip()
        await _need(["dpkg-deb", "--extract", archive, "tree"], work)
        kernel = work / "kernel"
        await asyncio.to_thread(_collect, work / "tree", kernel, version)
        await asyncio.to_thread(shutil.rmtree, into, ignore_errors=True)  # of an earlier program, which needed fewer modules
        kernel.replace(into)


def _collect(tree: Path, kernel: Path, version: str) -> None:
    (kernel / "modules").mkdir(parents=True)
    [image] = (tree / "boot").glob("vmlinuz-*")
    shutil.copyfile(image, kernel / "vmlinuz")
    for name in (*EARLY, *LATE):
        for found in tree.rglob(f"{name}.ko*"):
            data = found.read_bytes()
            (kernel / "modules" / f"{name}.ko").write_bytes(lzma.decompress(data) if found.suffix == ".xz" else data)
    (kernel / "wanted").write_text(WANTED, encoding="ascii")
    (kernel / "version").write_text(f"{version}\n", encoding="ascii")


async def _need(argv: list[str], cwd: Path) -> spawn.Finished:
    done = await _try(["sh", "-c", 'cd "$1" && shift && exec "$@"', "sh", str(cwd), *argv])
    if done.code != 0:
        raise RuntimeFault("guest.no-kernel", f"{argv[0]}: {done.complaint()[-500:]}", retryable=True)
    return done


async def _try(argv: list[str]) -> spawn.Finished:
    try:
        return await spawn.run(argv, timeout_s=_FETCH_S)
    except FileNotFoundError as error:
        raise RuntimeFault("guest.no-kernel", f"{argv[0]} is not installed; scripts/guest-kernel makes a kernel without it") from error
