"""Layers that attack whoever unpacks them, one by one: each is refused by name, nothing is left, nothing outside was touched."""

from __future__ import annotations

import gzip
import json
import os
import tarfile
from dataclasses import replace
from pathlib import Path

import pytest
from support.images import content_of, debugfs, layout, layout_of, tar

from agents.images import BuildLimits, ImageFault
from agents.images.options import MIB
from agents.images.writer import LayerTar, LayoutWriter, Packed, packed, plain

UNSAFE, BAD, LARGE = "image.unsafe-path", "image.bad-layer", "image.too-large"


def entries(*described):
    def fill(layer: LayerTar) -> None:
        for name, kind, fields in described:
            layer.entry(name, kind, **fields)

    return fill


def file(name, **fields):
    return name, tarfile.REGTYPE, {"content": b"evil", **fields}


def link(name, target):
    return name, tarfile.SYMTYPE, {"linkname": target}


def hard(name, target):
    return name, tarfile.LNKTYPE, {"linkname": target}


ATTACKS = {
    "parent-of-the-root": (UNSAFE, [file("../evil")]),
    "parent-in-the-middle": (UNSAFE, [file("a/../../evil")]),
    "parent-alone": (UNSAFE, [("..", tarfile.DIRTYPE, {})]),
    "absolute-name": (UNSAFE, [file("/tmp/evil")]),
    "absolute-pax-name": (UNSAFE, [file("x", pax_headers={"path": "/tmp/evil"})]),
    "nul-in-a-name": (UNSAFE, [file("x", pax_headers={"path": "a\0b"})]),
    "through-a-link-out-of-the-root": (UNSAFE, [link("up", ".."), file("up/evil")]),
    "through-two-links-out-of-the-root": (UNSAFE, [link("a", "."), link("a/b", "../.."), file("a/b/evil")]),
    "through-a-deep-link-out-of-the-root": (UNSAFE, [link("x/y/z", "../../../../victim"), file("x/y/z/evil")]),
    "whiteout-through-a-link-out": (UNSAFE, [link("up", "../.."), file("up/.wh.victim")]),
    "opaque-whiteout-through-a-link-out": (UNSAFE, [link("up", "../.."), file("up/.wh..wh..opq")]),
    "whiteout-of-the-parent": (UNSAFE, [file("a/.wh...")]),
    "whiteout-of-itself": (UNSAFE, [file("a/.wh..")]),
    "whiteout-of-nothing": (UNSAFE, [file("a/.wh.")]),
    "link-loop": (UNSAFE, [link("a", "b"), link("b", "a"), file("a/evil")]),
    "link-to-itself": (UNSAFE, [link("a", "a/a"), file("a/evil")]),
    "link-to-nothing": (UNSAFE, [("a", tarfile.SYMTYPE, {"linkname": ""})]),
    "hard-link-outside": (UNSAFE, [hard("a", "../../victim")]),
    "hard-link-absolute": (UNSAFE, [hard("a", "/etc/passwd")]),
    "hard-link-through-a-link-out": (UNSAFE, [link("up", "../.."), hard("a", "up/victim")]),
    "hard-link-to-nothing": (BAD, [hard("a", "missing")]),
    "hard-link-as-the-root": (UNSAFE, [file("a"), hard(".", "a")]),
    "hard-link-to-a-directory": (BAD, [("d", tarfile.DIRTYPE, {}), hard("a", "d")]),
    "file-below-a-file": (BAD, [file("a"), file("a/evil")]),
    "file-as-the-root": (UNSAFE, [file(".")]),
    "long-component": (UNSAFE, [file("x" * 256)]),
    "long-path": (UNSAFE, [file("/".join(["x" * 200] * 21))]),
    "deep-path": (LARGE, [file("x/" * 300 + "y")]),
    "character-device": ("image.device-node", [("null", tarfile.CHRTYPE, {"devmajor": 1, "devminor": 3})]),
    "overlay-whiteout-device": ("image.device-node", [("gone", tarfile.CHRTYPE, {"devmajor": 0, "devminor": 0})]),
    "block-device": ("image.device-node", [("sda", tarfile.BLKTYPE, {"devmajor": 8, "devminor": 0})]),
    "unknown-type": (BAD, [("x", b"Z", {})]),
    "impossible-owner": (BAD, [file("x", pax_headers={"uid": "-5"})]),
    "owner-that-means-none": (BAD, [file("x", pax_headers={"gid": str(2**32 - 1)})]),
    "overlay-redirect": ("image.unsafe-xattr", [file("x", pax_headers={"SCHILY.xattr.trusted.overlay.redirect": "/etc"})]),
    "overlay-redirect-of-a-user": ("image.unsafe-xattr", [file("x", pax_headers={"SCHILY.xattr.user.overlay.opaque": "y"})]),
    "huge-attribute": (LARGE, [file("x", pax_headers={"SCHILY.xattr.user.x": "v" * 5000})]),
    "huge-header": (LARGE, [file("x", pax_headers={"comment": "v" * 2 * MIB})]),
    "sparse-petabyte": (
        LARGE,
        [
            file(
                "x",
                pax_headers={
                    "GNU.sparse.major": "0",
                    "GNU.sparse.minor": "1",
                    "GNU.sparse.size": str(2**50),
                    "GNU.sparse.map": f"{2**50 - 4},4",
                },
            )
        ],
    ),
    "sparse-map-nonsense": (BAD, [file("x", pax_headers={"GNU.sparse.major": "1", "GNU.sparse.minor": "0", "GNU.sparse.realsize": "9"})]),
    "file-for-lost-and-found": (BAD, [file("lost+found")]),
}


@pytest.fixture
def victim(tmp_path):
    path = tmp_path / "victim"
    path.write_text("untouched")
    yield path
    assert path.read_text() == "untouched"
    assert not list(tmp_path.rglob("evil"))
    assert not Path("/tmp/evil").exists()


def refused(bench, image, code, **options):
    with pytest.raises(ImageFault) as refusal:
        bench.build(image, **options)
    assert (refusal.value.code, refusal.value.retryable) == (code, False)
    assert bench.leftovers() == []


@pytest.mark.parametrize("name", ATTACKS)
def test_an_attack_is_refused_and_leaves_nothing(name, bench, victim, tmp_path):
    code, described = ATTACKS[name]
    limits = BuildLimits(max_unpacked_bytes=256 * MIB) if name == "sparse-petabyte" else BuildLimits()
    refused(bench, layout(tmp_path / "l", entries(*described)), code, limits=limits)


def test_a_link_of_a_lower_layer_leads_an_upper_layer_nowhere_else(bench, victim, tmp_path):
    refused(bench, layout(tmp_path / "l", entries(link("up", "../../..")), entries(file("up/evil"))), UNSAFE)


@pytest.mark.parametrize("target", ["/tmp", "/tmp/../tmp", "//tmp"])
def test_an_absolute_link_leads_where_a_container_would_go(target, bench, victim, tmp_path):
    """Real images have them (/var/run, /bin): they are kept as they are, and never followed on the host."""
    image = layout(tmp_path / "l", entries(("tmp", tarfile.DIRTYPE, {}), link("abs", target), file("abs/evil")), entries(file("abs/more")))
    built = bench.build(image)
    assert content_of(built.path, "/tmp/evil") == "evil"
    assert content_of(built.path, "/tmp/more") == "evil"
    assert f'"{target}"' in debugfs(built.path, 'stat "/abs"')


def test_an_absolute_link_out_of_the_root_is_refused(bench, victim, tmp_path):
    refused(bench, layout(tmp_path / "l", entries(link("abs", "/../.."), file("abs/evil"))), UNSAFE)


def test_too_many_entries_are_refused_also_when_they_are_only_implied(bench, tmp_path):
    deep = layout(tmp_path / "l", entries(*[file("/".join([str(n)] * 50)) for n in range(20)]))
    refused(bench, deep, LARGE, limits=BuildLimits(max_entries=500))


@pytest.mark.parametrize(
    "limits",
    [BuildLimits(max_ratio=50), BuildLimits(max_unpacked_bytes=70 * MIB)],
    ids=["ratio", "bytes"],
)
@pytest.mark.parametrize("twice", [False, True], ids=["once", "twice"])
def test_a_decompression_bomb_is_stopped(bench, tmp_path, limits, twice):
    data = bytes(80 * MIB)
    body = gzip.compress(data[: 40 * MIB], 1) * 2 if twice else gzip.compress(data, 1)
    refused(bench, layout_of(tmp_path / "l", replace(plain(data), data=body)), LARGE, limits=limits)


def test_compressed_size_and_layer_count_are_bounded_before_anything_is_unpacked(bench, tmp_path):
    image = layout(tmp_path / "l", entries(file("a")), entries(file("b")))
    refused(bench, image, LARGE, limits=BuildLimits(max_layers=1))
    refused(bench, image, LARGE, limits=BuildLimits(max_compressed_bytes=100))


def test_bytes_that_are_not_what_the_manifest_says_are_refused(bench, tmp_path):
    image = layout(tmp_path / "l", entries(file("a")))
    blobs = tmp_path / "l/blobs/sha256"
    layer = next(path for path in blobs.iterdir() if path.read_bytes().startswith(b"\x1f\x8b"))
    good = layer.read_bytes()
    for bad in (good[:-1] + bytes([good[-1] ^ 1]), good[:-1], good + b"\0"):
        layer.write_bytes(bad)
        refused(bench, image, "image.digest-mismatch")


def test_a_manifest_cannot_hide_how_large_a_layer_is(bench, tmp_path):
    writer = LayoutWriter(tmp_path / "l")
    writer.image([packed(tar(entries(file("a"))))], {}, "t")
    index = json.loads((tmp_path / "l/index.json").read_bytes())["manifests"][0]
    manifest = json.loads((tmp_path / "l/blobs" / index["digest"].replace(":", "/")).read_bytes())
    manifest["layers"][0]["size"] = 1
    writer.tag(writer.blob(json.dumps(manifest).encode(), index["mediaType"]), "t")
    refused(bench, f"oci:{tmp_path / 'l'}:t", "image.digest-mismatch")


def test_an_unpacked_layer_must_be_the_one_that_the_configuration_names(bench, tmp_path):
    honest, other = packed(tar(entries(file("a")))), packed(tar(entries(file("b"))))
    refused(bench, layout_of(tmp_path / "l", replace(honest, diff_id=other.diff_id)), "image.digest-mismatch")


GOOD = tar(entries(file("a", content=b"x" * 3000), file("b", content=b"y" * 3000)))
BROKEN = {
    "cut-in-a-file": GOOD[:2000],
    "cut-in-a-header": GOOD[:3700],
    "garbage-for-a-header": GOOD[:3584] + b"g" * 512 + GOOD[4096:],
    "no-tar-at-all": b"#!/bin/sh\n" * 200,
}


@pytest.mark.parametrize("name", BROKEN)
def test_a_broken_archive_is_refused_not_read_in_part(name, bench, tmp_path):
    refused(bench, layout_of(tmp_path / "l", packed(BROKEN[name])), BAD)


@pytest.mark.parametrize("cut", [10, 40, -5])
def test_a_broken_gzip_stream_is_refused(cut, bench, tmp_path):
    whole = packed(GOOD)
    refused(bench, layout_of(tmp_path / "l", Packed(whole.data[:cut], whole.media_type, whole.diff_id)), BAD)
    damaged = whole.data[:30] + bytes([whole.data[30] ^ 255]) + whole.data[31:]
    refused(bench, layout_of(tmp_path / "m", Packed(damaged, whole.media_type, whole.diff_id)), BAD)


def test_a_fifo_or_a_link_in_the_place_of_a_blob_is_refused(bench, tmp_path):
    image = layout(tmp_path / "l", entries(file("a")))
    index = json.loads((tmp_path / "l/index.json").read_bytes())
    manifest = tmp_path / "l/blobs" / index["manifests"][0]["digest"].replace(":", "/")
    saved = manifest.rename(tmp_path / "saved")
    os.mkfifo(manifest)
    refused(bench, image, "image.bad-manifest")
    manifest.unlink()
    manifest.symlink_to(saved)
    refused(bench, image, "artifact.build-failed")
