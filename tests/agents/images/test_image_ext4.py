"""The file that comes out: right in every inode, and always the same."""

from __future__ import annotations

import asyncio
import os
import re
import shutil
import stat
import struct
import subprocess
import tarfile
from contextlib import contextmanager
from pathlib import Path

import pytest
from support.images import Bench, as_nobody, check, content_of, debugfs, layout, stat_of

from agents.images import BuildLimits, ImageFault, build, tools
from agents.images.options import MIB

CAPABILITY = struct.pack("<IIIII", 0x02000001, 1 << 10, 0, 0, 0).decode("latin-1")
"""``cap_net_bind_service=ep``, as the kernel stores it."""
NANOSECONDS = "1700000000.123456789"


def base(layer):
    layer.directory("./", mode=0o755)
    layer.directory("bin")
    layer.file("bin/tool", b"#!tool\n" * 1000, mode=0o755)
    layer.entry("bin/suid", content=b"suid", mode=0o4755, mtime=1600000000)
    layer.hardlink("bin/also", "bin/suid")
    layer.symlink("bin/sh", "tool")
    layer.symlink("long", "t" * 200)
    layer.hardlink("long2", "long")
    layer.entry("locked", tarfile.DIRTYPE, mode=0o000, uid=1000, gid=100)
    layer.entry("locked/secret", content=b"s" * 70, mode=0o000, uid=100000, gid=70000)
    layer.entry(
        "cap", content=b"c", mode=0o755, pax_headers={"SCHILY.xattr.security.capability": CAPABILITY, "SCHILY.xattr.user.note": "hi there"}
    )
    layer.entry("exact", content=b"e", pax_headers={"mtime": NANOSECONDS})
    layer.entry("ancient", content=b"a", pax_headers={"mtime": "-86400"})
    layer.entry("future", content=b"f", pax_headers={"mtime": "9000000000.5"})
    layer.entry("pipe", tarfile.FIFOTYPE, mode=0o622)
    layer.file("empty", b"")
    layer.file("holes", bytes(3 * MIB) + b"end")
    layer.file("zeros", bytes(MIB))
    layer.file("removed/by/whiteout", b"w")
    layer.directory("lost+found", mode=0o700)
    layer.file("lost+found/found", b"again")
    for n in range(400):
        layer.file(f"many/file with a long name to fill directory blocks {n:04d}", b"%d" % n)


def top(layer):
    layer.whiteout("removed/by")
    layer.file('odd "name"\nof\tbytes \udcff', b"odd")


def rich(folder: Path) -> str:
    return layout(folder, base, top, config={"Cmd": ["/bin/sh"], "Env": ["A=b"]})


def test_every_inode_has_the_metadata_that_the_image_gives_it(bench, tmp_path):
    built = bench.build(rich(tmp_path / "l"))
    image = built.path
    check(image)
    assert built.image_config == {"Cmd": ["/bin/sh"], "Env": ["A=b"]}
    assert built.size_bytes == image.stat().st_size
    suid = stat_of(image, "/bin/suid")
    assert (suid["Mode"], suid["User"], suid["Group"], suid["Links"]) == ("04755", "0", "0", "2")
    assert stat_of(image, "/bin/also")["Inode"] == suid["Inode"]
    assert stat_of(image, "/long2")["Type"] == "symlink"
    secret = stat_of(image, "/locked/secret")
    assert (secret["Mode"], secret["User"], secret["Group"], secret["Size"]) == ("0000", "100000", "70000", "70")
    assert stat_of(image, "/locked")["Mode"] == "0000"
    assert stat_of(image, "/pipe")["Type"] == "FIFO"
    assert "security.capability (20)" in debugfs(image, "ea_list /cap")
    assert 'user.note (8) = "hi there"' in debugfs(image, "ea_list /cap")
    assert content_of(image, "/bin/tool") == "#!tool\n" * 1000
    assert stat_of(image, "/zeros")["Size"] == str(MIB)
    assert content_of(image, "/lost+found/found") == "again"
    assert "by" not in debugfs(image, "ls -p /removed")
    created = stat_of(image, "/")["ctime"]
    assert created.startswith(f"{1714979289:#x}"), "the image's own creation time"
    assert bench.leftovers() == [image]


def test_the_same_image_gives_the_same_bytes_after_a_fresh_unpack_and_other_options_others(tmp_path):
    image = rich(tmp_path / "l")
    one = Bench(tmp_path / "one").build(image)
    two = Bench(tmp_path / "two").build(image)
    assert (one.sha256, one.size_bytes) == (two.sha256, two.size_bytes)
    assert one.path.read_bytes() == two.path.read_bytes()
    assert Bench(tmp_path / "three").build(image, disk_mb=262_144).sha256 != one.sha256
    assert Bench(tmp_path / "four").build(layout(tmp_path / "m", base)).sha256 != one.sha256


@pytest.mark.skipif(not os.access("/dev/shm", os.W_OK), reason="needs a second kind of file system to unpack in")
def test_the_bytes_do_not_depend_on_the_file_system_that_was_unpacked_in(tmp_path):
    image = rich(tmp_path / "l")
    here = Bench(tmp_path / "here").build(image)
    there = Path("/dev/shm") / f"strandline-test-{os.getpid()}"
    try:
        assert Bench(tmp_path / "there").build(image, work=there).sha256 == here.sha256
    finally:
        shutil.rmtree(there)


def test_attributes_and_rights_of_the_hosts_own_folders_do_not_get_into_the_image(tmp_path):
    image = rich(tmp_path / "l")
    usual = Bench(tmp_path / "usual").build(image)
    work = tmp_path / "work"
    work.mkdir()
    owner, somebody, group, mask, others = 0x01, 0x02, 0x04, 0x10, 0x20
    entries = [(owner, -1), (somebody, 12345), (group, -1), (mask, -1), (others, -1)]
    acl = struct.pack("<I", 2) + b"".join(struct.pack("<HHI", tag, 7, who % 2**32) for tag, who in entries)
    try:
        os.setxattr(work, "system.posix_acl_default", acl)
    except OSError as error:
        pytest.skip(f"no access control lists here: {error}")
    umask = os.umask(0o077)
    try:
        assert Bench(tmp_path / "odd").build(image, work=work).sha256 == usual.sha256
    finally:
        os.umask(umask)


@pytest.mark.root
def test_an_ordinary_user_builds_the_same_bytes_as_root(tmp_path):
    image = rich(tmp_path / "l")
    as_root = Bench(tmp_path / "root").build(image)
    own = Path("/tmp") / f"strandline-nobody-{os.getpid()}"
    own.mkdir(mode=0o777)
    own.chmod(0o777)
    try:
        shutil.copytree(tmp_path / "l", own / "l")
        answer = as_nobody(lambda: asyncio.run(build(f"oci:{own / 'l'}:t", None, 64, own / "work", own / "a.ext4")).sha256)
        assert answer == as_root.sha256
    finally:
        shutil.rmtree(own)


@contextmanager
def mounted(image: Path, at: Path):
    at.mkdir()
    subprocess.run(["mount", "-o", "ro,loop", image, at], check=True)
    try:
        yield at
    finally:
        subprocess.run(["umount", at], check=True)


@pytest.mark.root
def test_the_kernel_sees_in_the_mounted_file_what_the_layers_say(bench, tmp_path):
    built = bench.build(rich(tmp_path / "l"))
    with mounted(built.path, tmp_path / "mnt") as mnt:
        suid, also = (mnt / "bin/suid").stat(), (mnt / "bin/also").stat()
        assert (stat.S_IMODE(suid.st_mode), suid.st_mtime, suid.st_nlink, suid.st_ino) == (0o4755, 1600000000, 2, also.st_ino)
        assert (mnt / "bin/tool").read_bytes() == b"#!tool\n" * 1000
        assert str((mnt / "long2").readlink()) == "t" * 200
        assert (mnt / "exact").stat().st_mtime_ns == 1700000000_123456789
        assert (mnt / "ancient").stat().st_mtime == -86400
        assert (mnt / "future").stat().st_mtime_ns == 9000000000_500000000
        assert os.getxattr(mnt / "cap", "security.capability") == CAPABILITY.encode("latin-1")
        assert os.getxattr(mnt / "cap", "user.note") == b"hi there"
        assert (mnt / "holes").read_bytes() == bytes(3 * MIB) + b"end"
        assert (mnt / "holes").stat().st_blocks * 512 <= 64 * 1024, "zeros take no room"
        secret = (mnt / "locked/secret").stat()
        assert (stat.S_IMODE(secret.st_mode), secret.st_uid, secret.st_gid) == (0, 100000, 70000)
        assert stat.S_ISFIFO((mnt / "pipe").stat().st_mode)
        assert (Path(os.fsdecode(os.fsencode(mnt) + b'/odd "name"\nof\tbytes \xff'))).read_bytes() == b"odd"
        assert len(list((mnt / "many").iterdir())) == 400
        assert list((mnt / "removed").iterdir()) == []


@pytest.mark.root
def test_a_built_file_system_grows_to_the_room_that_was_asked_for(bench, tmp_path):
    built = bench.build(rich(tmp_path / "l"), disk_mb=256)
    assert built.size_bytes < 32 * MIB, "room to write is not baked in"
    with built.path.open("r+b") as file:
        file.truncate(built.size_bytes + 256 * MIB)
    subprocess.run([tools.find("resize2fs"), built.path], check=True, capture_output=True)
    check(built.path)


def test_an_image_without_layers_or_with_empty_ones_is_an_empty_root(bench, tmp_path):
    built = bench.build(layout(tmp_path / "l", lambda _layer: None, lambda _layer: None))
    check(built.path)
    assert re.findall(r"/([^/]+)//\n", debugfs(built.path, "ls -p /")) == [".", "..", "lost+found"]
    check(bench.build(layout(tmp_path / "m")).path)


def test_a_missing_tool_is_named_with_the_command_that_mends_it(bench, tmp_path, monkeypatch):
    image = rich(tmp_path / "l")
    monkeypatch.setenv("PATH", "/nonexistent")
    monkeypatch.setattr(tools, "_ALSO", ())
    with pytest.raises(ImageFault) as refusal:
        bench.build(image)
    assert refusal.value.code == "host.missing-tool"
    assert refusal.value.details == {"tool": "mke2fs", "mend": "apt-get install e2fsprogs"}
    assert bench.leftovers() == []


@pytest.mark.root
@pytest.mark.parametrize("where", ["work", "out"])
def test_a_full_disk_is_a_retryable_refusal_and_leaves_nothing(where, bench, tmp_path):
    image = layout(tmp_path / "l", lambda layer: layer.file("large", os.urandom(4 * MIB)))
    small = tmp_path / "small"
    small.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=2m", "tmpfs", small], check=True)
    try:
        with pytest.raises(ImageFault) as refusal:
            bench.build(image, **({"work": small / "w"} if where == "work" else {"out": small / "a.ext4"}))
        assert (refusal.value.code, refusal.value.retryable) == ("node.disk-full", True)
        assert [path for path in small.rglob("*") if path.name != "w"] == []
        assert [path for path in bench.leftovers() if path.name != "out"] == []
    finally:
        subprocess.run(["umount", small], check=True)


def test_the_estimate_holds_for_many_small_things(bench, tmp_path):
    def fill(layer):
        for n in range(1500):
            layer.directory(f"d{n % 40}/{n}")
            layer.symlink(f"d{n % 40}/{n}/l", "x" * 100)
            layer.file(f"d{n % 40}/{n}/f", b"1")

    check(bench.build(layout(tmp_path / "l", fill), limits=BuildLimits()).path)
