"""From an image reference to an ext4 file: resolve, pull, unpack, build.

Everything happens below one private folder in ``work`` and in one hidden file beside ``out``; both are gone when the call ends, however it
ends, and ``out`` appears complete or not at all. Peak disk use is little more than the image: compressed layers
go while they are unpacked, and large files while they go into the file system.
"""

from __future__ import annotations

import asyncio
import hashlib
import os
import secrets
import shutil
import tempfile
from collections.abc import Iterator
from concurrent.futures import FIRST_EXCEPTION, ThreadPoolExecutor, wait
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from agents.images.blocking import Stop, in_thread
from agents.images.contents import Contents
from agents.images.decode import Budget, Layer
from agents.images.egress_ca import bake
from agents.images.ext4 import Builder
from agents.images.faults import host_fault
from agents.images.geometry import BLOCK, measure
from agents.images.layout import open_layout
from agents.images.manifest import Descriptor, Image
from agents.images.options import DEFAULT_LIMITS, SYSTEM_TRUST, Auth, BuildLimits, Trust
from agents.images.progress import BUILDING_EXT4, PULLING, UNPACKING, Meter, Tell
from agents.images.reference import RemoteRef, parse
from agents.images.registry import Registry
from agents.images.source import CHUNK, Blob, Source, read_image
from agents.images.staging import stage
from agents.images.tools import find
from agents.images.tree import Tree
from agents.images.unpack import Unpacker

_PREFIX: Final = "build-"
_PARTIAL: Final = ".partial"


@dataclass(frozen=True, slots=True)
class Resolved:
    """Which bytes a reference means now. ``digest`` is that of the manifest for this machine, not of an index around it."""

    digest: str
    size_bytes: int
    layers: int
    config: dict[str, Any]


@dataclass(frozen=True, slots=True)
class Built:
    """A finished ext4 file, its digest (hex) and size, and the image configuration's ``config`` object."""

    path: Path
    sha256: str
    size_bytes: int
    image_config: dict[str, Any]


async def resolve(
    image: str,
    auth: Auth | None = None,
    *,
    base: Path | None = None,
    trust: Trust = SYSTEM_TRUST,
    limits: BuildLimits = DEFAULT_LIMITS,
) -> Resolved:
    """Find out what ``image`` means; nothing is kept. ``base``: what relative layout paths are relative to. Raises ``ImageFault``."""

    def work(stop: Stop) -> Resolved:
        with tempfile.TemporaryDirectory(prefix="strandline-resolve-") as folder:
            found = read_image(_source(image, auth, base, trust, limits, stop), None, Path(folder), limits)
        return Resolved(found.digest, found.size_bytes, len(found.layers), found.config)

    return await in_thread(work)


async def build(
    image: str,
    digest: str | None,
    disk_mb: int,
    work: Path,
    out: Path,
    auth: Auth | None = None,
    progress: Tell | None = None,
    limits: BuildLimits = DEFAULT_LIMITS,
    *,
    base: Path | None = None,
    trust: Trust = SYSTEM_TRUST,
    egress_ca: bytes | None = None,
) -> Built:
    """Make ``out``, an ext4 file with the image's union of layers. Raises ``ImageFault``; a cancelled build leaves nothing behind.

    ``digest`` (from ``resolve``) pins the manifest whatever the tag has become. ``disk_mb``: how far the file system can be grown beyond
    its data. ``egress_ca``: a PEM certificate to trust. ``progress`` is called on the caller's event loop.
    """
    loop = asyncio.get_running_loop()
    meter = Meter((lambda told: tell_on(loop, progress, told)) if progress else None)

    def run(stop: Stop) -> Built:
        for tool in ("mke2fs", "debugfs"):  # before anything is pulled in vain
            find(tool)
        source = _source(image, auth, base, trust, limits, stop)
        with workplace(work) as place, Contents(place / "contents") as contents, appearing(out) as partial:
            job = _Build(source, place, contents, limits, meter, stop)
            found = job.pull(digest)
            tree = job.unpack(found)
            if egress_ca is not None:
                bake(tree, contents, egress_ca)
            sha256 = job.file_system(found, tree, disk_mb, partial)
            size = partial.stat().st_size
        return Built(out, sha256, size, found.config)

    return await in_thread(run)


def sweep(work: Path) -> list[Path]:
    """Remove what builds of a killed agent left in ``work``; only while no build runs there."""
    left = sorted(work.glob(f"{_PREFIX}*"))
    for folder in left:
        shutil.rmtree(folder)
    return left


def tell_on(loop: asyncio.AbstractEventLoop, progress: Tell | None, told: Any) -> None:
    if progress and not loop.is_closed():
        loop.call_soon_threadsafe(progress, told)


def _source(image: str, auth: Auth | None, base: Path | None, trust: Trust, limits: BuildLimits, stop: Stop) -> Source:
    ref = parse(image, base or Path.cwd())
    return Registry(ref, auth, trust, limits, stop) if isinstance(ref, RemoteRef) else open_layout(ref, stop)


@contextmanager
def workplace(work: Path) -> Iterator[Path]:
    """A folder of this build's own, removed at the end."""
    try:
        work.mkdir(parents=True, exist_ok=True)
        place = Path(tempfile.mkdtemp(prefix=_PREFIX, dir=work))
    except OSError as error:
        raise host_fault(error, "preparing the build") from error
    try:
        yield place
    finally:
        shutil.rmtree(place)


@contextmanager
def appearing(out: Path) -> Iterator[Path]:
    """A path to write to; what is there in the end becomes ``out`` at once and durably, unless an error goes through."""
    out.parent.mkdir(parents=True, exist_ok=True)
    partial = out.with_name(f".{out.name}.{secrets.token_hex(4)}{_PARTIAL}")
    try:
        yield partial
        _sync(partial)
        partial.replace(out)
        _sync(out.parent)
    except OSError as error:
        raise host_fault(error, "storing the file system") from error
    finally:
        partial.unlink(missing_ok=True)


def _sync(path: Path) -> None:
    fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)


class _Build:
    """The phases of one build, in order."""

    def __init__(self, source: Source, place: Path, contents: Contents, limits: BuildLimits, meter: Meter, stop: Stop) -> None:
        self._source = source
        self._place = place
        self._contents = contents
        self._limits = limits
        self._meter = meter
        self._stop = stop
        self._blobs: list[Blob] = []

    def pull(self, digest: str | None) -> Image:
        """PULLING: the manifest, then the layers, several at once; equal layers once."""
        self._meter.phase(PULLING, 0, 0)
        found = read_image(self._source, digest, self._place, self._limits)
        self._meter.phase(PULLING, sum(layer.size for layer in found.layers), len(found.layers))
        folder = self._place / "layers"
        folder.mkdir(mode=0o700)
        unique = {layer.digest: layer for layer in found.layers}
        fetched = dict(zip(unique, self._fetch_all(list(unique.values()), folder), strict=True))
        self._blobs = [fetched[layer.digest] for layer in found.layers]
        self._meter.done()
        return found

    def _fetch_all(self, layers: list[Descriptor], folder: Path) -> list[Blob]:
        def fetch(layer: Descriptor) -> Blob:
            blob = self._source.fetch(layer, folder, self._meter.add)
            self._meter.layer()
            return blob

        with ThreadPoolExecutor(self._limits.parallel_pulls, thread_name_prefix="pull") as pool:
            futures = [pool.submit(fetch, layer) for layer in layers]
            done, _ = wait(futures, return_when=FIRST_EXCEPTION)
            trouble = [error for future in done if (error := future.exception())]
            if trouble:
                self._stop.set()  # one failed: the others are in vain
                pool.shutdown(cancel_futures=True)
                raise trouble[0]
            return [future.result() for future in futures]

    def unpack(self, found: Image) -> Tree:
        """UNPACKING: every layer into the union tree, bottom first; a pulled layer is removed after its last use."""
        self._meter.phase(UNPACKING, sum(layer.size for layer in found.layers), len(found.layers))
        budget = Budget(self._limits)
        tree = Tree(self._contents.release, budget.entry, found.epoch * 10**9)
        unpacker = Unpacker(tree, self._contents, budget, self._meter)
        for number, (blob, diff_id) in enumerate(zip(self._blobs, found.diff_ids, strict=True)):
            last = blob not in self._blobs[number + 1 :]
            unpacker.apply(Layer(blob, diff_id, budget, self._stop, spend=last), number)
            if last:
                blob.discard()
        self._meter.done()
        return tree

    def file_system(self, found: Image, tree: Tree, disk_mb: int, partial: Path) -> str:
        """BUILDING_EXT4: stage, make, describe, digest. The SHA-256 of the file, hex."""
        source = (found.digest, found.epoch, len(found.layers))
        return file_system(tree, self._contents, self._place, source, disk_mb, partial, self._meter, self._stop)


def file_system(
    tree: Tree, contents: Contents, place: Path, source: tuple[str, int, int], disk_mb: int, partial: Path, meter: Meter, stop: Stop
) -> str:
    """Stage a tree, make the file ``partial`` of it, describe it; its SHA-256, hex. ``source``: digest, epoch (s), number of layers."""
    digest, epoch, layers = source
    geometry = measure(tree, disk_mb)
    meter.phase(BUILDING_EXT4, geometry.blocks * BLOCK, layers)
    staged = stage(tree, contents, place / "root", stop.check)
    Builder(place, stop, seed=digest, epoch=epoch).build(staged, geometry, partial, lambda: meter.reach(_allocated(partial)))
    hasher = hashlib.sha256()
    with partial.open("rb", buffering=0) as file:
        while chunk := file.read(4 * CHUNK):
            stop.check()
            hasher.update(chunk)
    meter.done()
    return hasher.hexdigest()


def _allocated(path: Path) -> int:
    """Bytes of a growing sparse file that are there."""
    try:
        return path.stat().st_blocks * 512
    except FileNotFoundError:
        return 0
