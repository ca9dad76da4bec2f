"""A staged tree made into an ext4 file, without root, byte for byte the same for the same tree and options.

``mke2fs -d`` copies the tree without its large files, which come then (``agents/images/bringing.py``). A last ``debugfs`` script gives
every inode its owner, mode, times and attributes: the copies have the agent's. What would differ from one run to the next is fixed: the
UUID, the hash seed, all times, the feature set (ours, not the host's ``mke2fs.conf``). Needs e2fsprogs 1.47.0 or later, which can leave
the host's extended attributes out.
Measured in reference/runtimes.md §6: mke2fs 1.47.0 alone copies change times, and so is not reproducible.
"""

from __future__ import annotations

import shutil
import struct
import uuid
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import BinaryIO, Final

from agents.images.blocking import Stop
from agents.images.bringing import brought, portions, script
from agents.images.faults import ImageFault
from agents.images.geometry import BLOCK, INODE, Geometry
from agents.images.staging import Staged
from agents.images.tools import run, tail
from agents.images.tree import Kind, Node

_FEATURES: Final = (
    "64bit,dir_index,dir_nlink,ext_attr,extent,extra_isize,filetype,flex_bg,huge_file,large_file,metadata_csum,resize_inode,sparse_super"
)
"""No journal: the file is read-only below overlays, and a microVM whose disk is thrown away needs none."""

_CONFIGURATION: Final = f"""[defaults]
base_features = none
default_mntopts = acl,user_xattr
enable_periodic_fsck = 0
blocksize = {BLOCK}
inode_size = {INODE}
[fs_types]
ext4 = {{
features = {_FEATURES}
}}
floppy = {{
}}
small = {{
}}
big = {{
}}
huge = {{
}}
"""
_NAMESPACE: Final = uuid.UUID("2b0f8f7e-5d2c-5c61-8a57-0c1b6a5f3d10")
_RESERVED: Final = 11
"""The first inode that files get. Below it only the root directory is ours; the others have the faked time."""
_ROOT: Final = 2
_ATTEMPTS: Final = 3
_FULL: Final = "Could not allocate"


class Builder:
    """Makes one file. ``seed`` names the source (an image digest); equal seeds give equal UUIDs. ``epoch`` in seconds."""

    def __init__(self, work: Path, stop: Stop, *, seed: str, epoch: int) -> None:
        self._work = work
        self._stop = stop
        self._seed = seed
        self._epoch = epoch
        # The libraries take 0 for "not set". Inode times that they would clamp to "now" must not be: they are the staged numbers.
        self._env = {"E2FSPROGS_FAKE_TIME": str(max(epoch, 1)), "MKE2FS_CONFIG": str(work / "mke2fs.conf"), "DEBUGFS_PAGER": "cat"}

    def build(self, staged: Staged, geometry: Geometry, out: Path, meanwhile: Callable[[], None]) -> None:
        """Raises ``artifact.build-failed``, ``host.missing-tool``, ``node.disk-full``."""
        (self._work / "mke2fs.conf").write_text(_CONFIGURATION)
        for attempt in range(1, _ATTEMPTS + 1):
            code, _, complaint = run(self._mke2fs(staged, geometry, out), self._stop, cwd=self._work, env=self._env, meanwhile=meanwhile)
            if code == 0 and _free_blocks(out) >= sum(file.blocks for file in staged.large):
                break
            out.unlink(missing_ok=True)
            if "No space left on device" in complaint:
                raise _disk_full()
            if (code and _FULL not in complaint) or attempt == _ATTEMPTS:
                raise ImageFault("artifact.build-failed", f"mke2fs: {tail(complaint)}")
            geometry = geometry.enlarged()
        found = [(_ROOT, staged.root), *_numbered(staged, out)]
        shutil.rmtree(staged.path)  # it is in; what comes now is not there twice
        self._debugfs(out, self._metadata([*found, *self._bring(staged, out, found, meanwhile)]))

    def _bring(
        self, staged: Staged, out: Path, found: Sequence[tuple[int, Node]], meanwhile: Callable[[], None]
    ) -> Iterator[tuple[int, Node]]:
        """Bring the large files in, and let go of each portion that is. Their inode numbers."""
        directories = {id(node): number for number, node in found if node.kind is Kind.DIRECTORY}
        for portion in portions(staged.large):
            said = self._debugfs(out, [script(portion, directories, staged.contents.folder.name)], saying="Allocated inode: ")
            yield from brought(portion, said)
            for file in portion:
                staged.contents.release(file.node.content)
            meanwhile()

    def _mke2fs(self, staged: Staged, geometry: Geometry, out: Path) -> list[str]:
        extended = (
            f"hash_seed={self._uuid('hash')}",
            "root_owner=0:0",
            f"resize={geometry.grow_to}",
            "lazy_itable_init=0",
            "nodiscard",
            "no_copy_xattrs",
        )
        return [
            *("mke2fs", "-q", "-F", "-t", "ext4", "-m", "0", "-U", self._uuid("filesystem"), "-N", str(geometry.inodes)),
            *("-E", ",".join(extended), "-d", str(staged.path), str(out), f"{geometry.blocks * (BLOCK // 1024)}k"),
        ]

    def _uuid(self, what: str) -> str:
        return str(uuid.uuid5(_NAMESPACE, f"{what} {self._seed}"))

    def _debugfs(self, image: Path, script: Iterable[bytes], saying: str = "debugfs:") -> str:
        """Run a script; what it said. Lines that begin with ``saying`` are no complaints."""
        path = self._work / "debugfs.script"
        with path.open("wb") as file:
            file.writelines(script)
        code, out, complaint = run(["debugfs", "-w", "-f", path.name, str(image)], self._stop, cwd=self._work, env=self._env)
        wrong = [line for line in out.splitlines() if not line.startswith(("debugfs:", saying))]
        wrong += [line for line in complaint.splitlines() if not line.startswith("debugfs ")]
        if code or any(line.strip() for line in wrong):  # debugfs goes on after a mistake and exits with 0
            if any("No space left on device" in line for line in wrong):
                raise _disk_full()
            raise ImageFault("artifact.build-failed", f"debugfs: {tail(' '.join(wrong)) or code}")
        return out

    def _metadata(self, found: Iterable[tuple[int, Node]]) -> Iterator[bytes]:
        for number, node in found:
            for line in self._inode(number, node):
                yield f"{line}\n".encode()

    def _inode(self, number: int, node: Node) -> Iterator[str]:
        yield f"sif <{number}> mode 0{node.kind.value | node.mode:o}"
        yield f"sif <{number}> uid {node.uid}"
        yield f"sif <{number}> gid {node.gid}"
        yield from _times(number, node.mtime_ns, self._epoch)
        for name, value in sorted(node.xattrs.items()):
            file = self._work / f"xattr-{number}-{len(name)}-{name.encode().hex()[:64]}"
            file.write_bytes(value)
            quoted = name.replace('"', '""')
            yield f'ea_set -f {file.name} <{number}> "{quoted}"'


def _times(number: int, mtime_ns: int, epoch: int) -> Iterator[str]:
    """Access and modification are the image's time, change and birth its epoch.

    The extra words are nanoseconds << 2 | bits 32 and 33 of the seconds.
    """
    seconds, nanoseconds = divmod(mtime_ns, 10**9)
    extra = nanoseconds << 2 | (seconds + 2**31 >> 32 & 3)
    for name in ("mtime", "atime"):
        yield f"sif <{number}> {name} @{seconds & 0xFFFFFFFF:#x}"
        yield f"sif <{number}> {name}_extra {extra}"
    for name in ("ctime", "crtime"):
        yield f"sif <{number}> {name} @{epoch:#x}"
        yield f"sif <{number}> {name}_extra 0"


def _disk_full() -> ImageFault:
    return ImageFault("node.disk-full", "the disk is full while making the file system", retryable=True)


def _numbered(staged: Staged, image: Path) -> list[tuple[int, Node]]:
    """Which inode each staged node has become. Raises ``artifact.build-failed`` when they do not match."""
    with image.open("rb") as file:
        found = [(number, mark) for number, mark in inodes(file) if number >= _RESERVED]
    for number, mark in found:
        if not 1 <= mark <= len(staged.nodes):
            raise ImageFault("artifact.build-failed", f"inode {number} of the file system is none of ours")
    if len(found) != len(staged.nodes):
        raise ImageFault("artifact.build-failed", f"the file system has {len(found)} inodes, the image {len(staged.nodes)}")
    return [(number, staged.nodes[mark - 1]) for number, mark in found]


def _free_blocks(image: Path) -> int:
    """Of the file system as it is, from its super block."""
    with image.open("rb") as file:
        file.seek(1024)
        super_block = file.read(1024)
    low, high = (struct.unpack_from("<I", super_block, at)[0] for at in (0x0C, 0x158))
    return int(high << 32 | low)


def inodes(file: BinaryIO) -> Iterator[tuple[int, int]]:
    """(number, modification time in seconds) of every inode in use, from the inode tables themselves.

    Layout: https://docs.kernel.org/filesystems/ext4/ ; of the features only those in ``_FEATURES`` are understood.
    """
    file.seek(1024)
    super_block = file.read(1024)
    count, blocks = struct.unpack_from("<II", super_block, 0)
    per_group_blocks, per_group = struct.unpack_from("<I", super_block, 32)[0], struct.unpack_from("<I", super_block, 40)[0]
    size, descriptor = struct.unpack_from("<H", super_block, 88)[0], struct.unpack_from("<H", super_block, 254)[0]
    groups = -(-blocks // per_group_blocks)
    file.seek(BLOCK)
    descriptors = file.read(groups * descriptor)
    for group in range(groups):
        low = struct.unpack_from("<I", descriptors, group * descriptor + 8)[0]
        high = struct.unpack_from("<I", descriptors, group * descriptor + 40)[0]
        file.seek((high << 32 | low) * BLOCK)
        table = file.read(per_group * size)
        for index in range(min(per_group, count - group * per_group)):
            mode, links = struct.unpack_from("<H", table, index * size)[0], struct.unpack_from("<H", table, index * size + 26)[0]
            if mode and links:
                yield group * per_group + index + 1, struct.unpack_from("<I", table, index * size + 16)[0]
