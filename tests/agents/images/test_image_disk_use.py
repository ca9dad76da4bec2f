"""What a build needs on disk: little more than the image itself, at every moment; and large files come out as small ones do."""

from __future__ import annotations

import os
import random
import shutil
from pathlib import Path

import pytest
from support.images import Registry, check, content_of, debugfs, layout, stat_of

from agents.images import ImageFault, ext4, pipeline
from agents.images.bringing import LARGE, portions
from agents.images.options import MIB

PEAK = 1.3
"""Of the image's own size: the budget."""


def rich(layer):
    """60 MB, most of it in large files, with what large files can be."""
    some = random.Random(1)
    for n in range(40):
        layer.file(f"data/{n % 3}/file {n}", some.randbytes(MIB // 2) + bytes(MIB // 4) + b"x" * (MIB // 2 + n))
    layer.file("large", some.randbytes(10 * MIB))
    for n in range(300):
        layer.file(f"small/{n}", some.randbytes(4000))


def allocated(*folders: Path) -> int:
    return sum(path.lstat().st_blocks * 512 for folder in folders for path in folder.rglob("*") if path.is_file())


@pytest.fixture
def peak(bench, monkeypatch):
    """The most that was allocated, looked at before and after every program and every layer, where it is most."""
    seen: list[int] = []

    def look() -> None:
        seen.append(allocated(bench.folder / "work", bench.folder / "out"))

    def watched(run):
        def wrapped(*arguments, **options):
            look()
            try:
                return run(*arguments, **options)
            finally:
                look()

        return wrapped

    monkeypatch.setattr(ext4, "run", watched(ext4.run))
    monkeypatch.setattr(pipeline.Unpacker, "apply", watched(pipeline.Unpacker.apply))
    return lambda: max(seen)


@pytest.mark.skipif(not shutil.which("docker-registry"), reason="needs docker-registry")
def test_a_build_from_a_registry_needs_little_more_room_than_the_image(bench, tmp_path, peak):
    layout(tmp_path / "l", rich)
    with Registry(tmp_path) as registry:
        registry.push(tmp_path / "l", "rich", "1")
        built = bench.build(f"docker://{registry.host}/rich:1")
    check(built.path)
    size = built.path.stat().st_blocks * 512
    assert size > 50 * MIB
    assert peak() / size <= PEAK


def test_large_files_are_as_the_image_has_them(bench, tmp_path):
    content = "".join(chr(ord("a") + n % 26) for n in range(LARGE + 5)).encode()

    def fill(layer):
        for name in ('in/odd "name" \udcff\t\\', "in/new\nline", "# comment", "in/deep/er/plain", "top"):
            layer.entry(name, content=content, mode=0o751, uid=7, gid=8, mtime=1600000000)
        layer.hardlink("in/linked", "top")
        layer.entry("attr", content=content, pax_headers={"SCHILY.xattr.user.note": "hi"})
        layer.file("zeros", bytes(3 * LARGE))
        layer.file("nearly", content[: LARGE - 1])

    built = bench.build(layout(tmp_path / "l", fill))
    check(built.path)
    for name in ("/in/deep/er/plain", "/top", "/in/linked", "/attr", "/# comment"):
        assert content_of(built.path, name).encode() == content
    plain = stat_of(built.path, "/in/deep/er/plain")
    assert (plain["Mode"], plain["User"], plain["Group"], plain["Size"], plain["Links"]) == ("0751", "7", "8", str(len(content)), "1")
    assert plain["mtime"].startswith(f"{1600000000:#x}")
    assert stat_of(built.path, "/top")["Links"] == "2"
    assert 'user.note (2) = "hi"' in debugfs(built.path, "ea_list /attr")
    assert stat_of(built.path, "/zeros")["Size"] == str(3 * LARGE)
    listed = debugfs(built.path, "ls -p /in")
    assert 'odd "name"' in listed
    assert listed.count(f"/{len(content)}/") == 3


def test_a_file_system_that_turns_out_too_small_for_them_is_made_larger(bench, tmp_path, monkeypatch):
    image = layout(tmp_path / "l", lambda layer: layer.file("large", os.urandom(3 * MIB)))
    free = ext4._free_blocks
    answers = iter([1])
    monkeypatch.setattr(ext4, "_free_blocks", lambda path: next(answers, free(path)))
    plain = bench.build(image)
    check(plain.path)
    assert next(answers, None) is None


def test_a_file_that_does_not_get_in_ends_the_build_and_leaves_nothing(bench, tmp_path, monkeypatch):
    monkeypatch.setattr(ext4, "script", lambda *_: b'write "contents/none" "x"\n')
    with pytest.raises(ImageFault) as fault:
        bench.build(layout(tmp_path / "l", lambda layer: layer.file("large", os.urandom(LARGE))))
    assert fault.value.code == "artifact.build-failed"
    assert bench.leftovers() == []


def test_portions_are_small_beside_all_of_them(tmp_path):
    class Sized:
        def __init__(self, size):
            self.node = self
            self.size = size

    files = [Sized(MIB) for _ in range(160)] + [Sized(30 * MIB)]
    parts = list(portions(files))
    assert [file for part in parts for file in part] == files
    assert max(sum(file.size for file in part) for part in parts[:-1]) <= 190 * MIB // 16
    assert parts[-1] == files[-1:]
