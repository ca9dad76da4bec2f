"""Images in folders and archives, how they are compressed, and how far a build says it is."""

from __future__ import annotations

import asyncio
import json
import subprocess
import tarfile
import threading
from dataclasses import replace

import pytest
from support.images import check, content_of, layout, tar

from agents.images import BuildLimits, ImageFault, resolve, sweep, tools
from agents.images.manifest import digest_of, this_platform
from agents.images.options import MIB
from agents.images.writer import LayoutWriter, packed, plain
from domain.nodes.orders import BuildProgress

INDEX = "application/vnd.oci.image.index.v1+json"


def hello(text="hello"):
    return lambda layer: layer.file("hello", text.encode())


def refused(image, code, **options):
    with pytest.raises(ImageFault) as refusal:
        asyncio.run(resolve(image, **options))
    assert refusal.value.code == code
    return refusal.value


def test_resolving_says_digest_size_layers_and_configuration(tmp_path):
    image = layout(tmp_path / "l", hello(), hello("again"), config={"Cmd": ["x"], "User": "7"})
    found = asyncio.run(resolve(image))
    manifest = tmp_path / "l/blobs" / found.digest.replace(":", "/")
    body = json.loads(manifest.read_bytes())
    assert found.digest == digest_of(manifest.read_bytes())
    assert found.layers == 2
    assert found.size_bytes == body["config"]["size"] + sum(layer["size"] for layer in body["layers"])
    assert found.config == {"Cmd": ["x"], "User": "7"}


def test_a_relative_path_is_relative_to_the_base(tmp_path):
    layout(tmp_path / "sub" / "l", hello())
    assert asyncio.run(resolve("oci:l:t", base=tmp_path / "sub")).layers == 1
    refused("oci:l:t", "image.not-found", base=tmp_path)


def test_an_archive_is_read_in_place_and_gives_the_same_file_as_the_folder(bench, tmp_path):
    folder = layout(tmp_path / "l", hello())
    with tarfile.open(tmp_path / "l.tar", "w") as archive:
        archive.add(tmp_path / "l", ".")
    expected = bench.build(folder)
    assert bench.build(f"oci-archive:{tmp_path / 'l.tar'}:t").sha256 == expected.sha256
    assert asyncio.run(resolve("oci-archive:l.tar", base=tmp_path)).digest == asyncio.run(resolve(folder)).digest


def test_what_is_no_usable_archive_is_refused(tmp_path):
    layout(tmp_path / "l", hello())
    with tarfile.open(tmp_path / "l.tar.gz", "w:gz") as archive:
        archive.add(tmp_path / "l", ".")
    refusal = refused(f"oci-archive:{tmp_path / 'l.tar.gz'}", "image.bad-manifest")
    assert "compressed" in refusal.message
    (tmp_path / "text").write_text("no archive at all\n" * 100)
    refused(f"oci-archive:{tmp_path / 'text'}", "image.bad-manifest")
    refused(f"oci-archive:{tmp_path / 'missing'}", "image.not-found")
    with tarfile.open(tmp_path / "empty.tar", "w"):
        pass
    refused(f"oci-archive:{tmp_path / 'empty.tar'}", "image.not-found")


def test_tags_choose_and_without_one_there_must_be_no_choice(tmp_path):
    layout(tmp_path / "l", hello("one"), tag="one")
    one = asyncio.run(resolve("oci:l", base=tmp_path)).digest
    layout(tmp_path / "l", hello("two"), tag="two")
    assert asyncio.run(resolve("oci:l:one", base=tmp_path)).digest == one
    refused("oci:l", "image.ambiguous", base=tmp_path)
    refused("oci:l:three", "image.not-found", base=tmp_path)
    layout(tmp_path / "l", hello("three"), tag="latest")
    assert asyncio.run(resolve("oci:l", base=tmp_path)).digest == asyncio.run(resolve("oci:l:latest", base=tmp_path)).digest


def test_a_digest_pins_the_image_though_the_tag_moves(bench, tmp_path):
    image = layout(tmp_path / "l", hello("old"))
    digest = asyncio.run(resolve(image)).digest
    layout(tmp_path / "l", hello("new"))
    assert content_of(bench.build(image, digest=digest).path, "/hello") == "old"
    assert content_of(bench.build(image).path, "/hello") == "new"


def indexed(folder, *, deep=0):
    """An index with an image for another machine and one for this; wrapped ``deep`` times more."""
    writer = LayoutWriter(folder)
    here = this_platform().architecture
    entries = []
    for architecture in ("s390x" if here != "s390x" else "amd64", here):
        digest = writer.image([packed(tar(hello(architecture)))], {}, "x", architecture=architecture)
        size = len((folder / "blobs" / digest.replace(":", "/")).read_bytes())
        manifest = "application/vnd.oci.image.manifest.v1+json"
        entries.append({"mediaType": manifest, "digest": digest, "size": size, "platform": {"os": "linux", "architecture": architecture}})
    for _ in range(1 + deep):
        data = json.dumps({"schemaVersion": 2, "mediaType": INDEX, "manifests": entries}).encode()
        entries = [writer.blob(data, INDEX)]
    (folder / "index.json").unlink()
    writer.tag(entries[0], "multi")
    return entries[0]["digest"]


def test_an_index_gives_the_image_for_this_machine(bench, tmp_path):
    index = indexed(tmp_path / "l")
    found = asyncio.run(resolve("oci:l:multi", base=tmp_path))
    assert found.digest != index
    for digest in (None, index, found.digest):
        assert content_of(bench.build("oci:l:multi", base=tmp_path, digest=digest).path, "/hello") == this_platform().architecture


def test_indexes_may_be_nested_but_not_without_end(tmp_path):
    indexed(tmp_path / "l", deep=1)
    assert asyncio.run(resolve("oci:l:multi", base=tmp_path)).layers == 1
    indexed(tmp_path / "m", deep=3)
    refused("oci:m:multi", "image.bad-manifest", base=tmp_path)


def test_an_image_for_another_machine_is_refused(tmp_path):
    LayoutWriter(tmp_path / "l").image([], {}, "t", architecture="pdp11")
    refusal = refused("oci:l", "image.wrong-platform", base=tmp_path)
    assert "pdp11" in refusal.message


MANIFEST = {
    "schemaVersion": 2,
    "config": {"mediaType": "application/vnd.oci.image.config.v1+json", "digest": "sha256:" + "0" * 64, "size": 2},
    "layers": [],
}
LAYER = {"mediaType": "application/vnd.oci.image.layer.v1.tar+gzip", "digest": "sha256:" + "0" * 64, "size": 1}


@pytest.mark.parametrize(
    ("code", "manifest"),
    [
        ("image.bad-manifest", b"no json"),
        ("image.bad-manifest", b"[]"),
        ("image.bad-manifest", {"schemaVersion": 2}),
        ("image.bad-manifest", {**MANIFEST, "layers": [{**LAYER, "size": -1}]}),
        ("image.bad-manifest", {**MANIFEST, "layers": [{**LAYER, "digest": "sha256:../../../../etc/passwd"}]}),
        ("image.bad-manifest", {**MANIFEST, "layers": [{**LAYER, "digest": "md5:0"}]}),
        ("image.unsupported-manifest", {"schemaVersion": 1, "name": "old"}),
        (
            "image.unsupported-manifest",
            {**MANIFEST, "config": {**MANIFEST["config"], "mediaType": "application/vnd.cncf.helm.config.v1+json"}},
        ),
        ("image.unsupported-layer", {**MANIFEST, "layers": [{**LAYER, "mediaType": "application/vnd.in-toto+json"}]}),
        (
            "image.unsupported-layer",
            {**MANIFEST, "layers": [{**LAYER, "mediaType": "application/vnd.docker.image.rootfs.foreign.diff.tar.gzip"}]},
        ),
        ("image.too-large", {**MANIFEST, "config": {**MANIFEST["config"], "size": 2**40}}),
        ("image.not-found", MANIFEST),
    ],
)
def test_a_manifest_that_we_cannot_run_is_refused_by_name(code, manifest, tmp_path):
    writer = LayoutWriter(tmp_path / "l")
    data = manifest if isinstance(manifest, bytes) else json.dumps(manifest).encode()
    writer.tag(writer.blob(data, "application/vnd.oci.image.manifest.v1+json"), "t")
    refused("oci:l", code, base=tmp_path)


def test_a_configuration_with_another_number_of_layers_is_refused(tmp_path):
    layout(tmp_path / "l", hello())
    found = asyncio.run(resolve("oci:l", base=tmp_path))
    manifest = json.loads((tmp_path / "l/blobs" / found.digest.replace(":", "/")).read_bytes())
    writer = LayoutWriter(tmp_path / "l")
    writer.tag(writer.blob(json.dumps({**manifest, "layers": []}).encode(), "application/vnd.oci.image.manifest.v1+json"), "t")
    refused("oci:l", "image.bad-manifest", base=tmp_path)


def zstd(data: bytes) -> bytes:
    return subprocess.run([tools.find("zstd"), "-qc"], input=data, capture_output=True, check=True).stdout


def test_plain_gzip_and_zstd_layers_give_the_same_file(bench, tmp_path):
    raw = tar(lambda layer: layer.file("hello", b"hello " * 100_000))
    variants = {
        "plain": plain(raw),
        "gzip": packed(raw),
        "gzip-said-to-be-plain": replace(packed(raw), media_type=plain(raw).media_type),
        "zstd": replace(plain(raw), data=zstd(raw), media_type="application/vnd.oci.image.layer.v1.tar+zstd"),
        "zstd-frames": replace(
            plain(raw), data=zstd(raw[:5000]) + zstd(raw[5000:]), media_type="application/vnd.oci.image.layer.v1.tar+zstd"
        ),
    }
    files = {}
    for name, layer in variants.items():
        LayoutWriter(tmp_path / name).image([layer], {}, "t")
        # the digest, and the UUID with it, differ: what the file system holds must not
        files[name] = content_of(bench.build(f"oci:{name}", base=tmp_path).path, "/hello")
        check(bench.folder / "out/a.ext4")
    assert set(files.values()) == {"hello " * 100_000}


def test_a_zstd_layer_is_bounded_and_its_damage_seen(bench, tmp_path, monkeypatch):
    raw = tar(lambda layer: layer.file("zeros", bytes(100 * MIB)))
    bomb = replace(plain(raw), data=zstd(raw), media_type="application/vnd.oci.image.layer.v1.tar+zstd")
    cut = replace(bomb, data=bomb.data[:-20])
    for name, layer, code in (("bomb", bomb, "image.too-large"), ("cut", cut, "image.bad-layer")):
        LayoutWriter(tmp_path / name).image([layer], {}, "t")
        with pytest.raises(ImageFault) as refusal:
            bench.build(f"oci:{name}", base=tmp_path, limits=BuildLimits(max_ratio=200 if name == "bomb" else 10**9))
        assert refusal.value.code == code
        assert bench.leftovers() == []
    (tmp_path / "bin").mkdir()
    for name in ("mke2fs", "debugfs"):
        (tmp_path / "bin" / name).symlink_to(tools.find(name))
    monkeypatch.setenv("PATH", str(tmp_path / "bin"))
    monkeypatch.setattr(tools, "_ALSO", ())
    with pytest.raises(ImageFault) as refusal:
        bench.build("oci:cut", base=tmp_path)
    assert (refusal.value.code, refusal.value.details["mend"]) == ("host.missing-tool", "apt-get install zstd")
    assert bench.leftovers() == []


def test_progress_goes_through_the_phases_in_order_and_reaches_every_end(bench, tmp_path):
    told: list[BuildProgress] = []
    threads = set()

    def progress(report):
        told.append(report)
        threads.add(threading.current_thread())

    image = layout(tmp_path / "l", hello(), lambda layer: layer.file("big", bytes(range(256)) * 4000))
    bench.build(image, progress=progress)
    assert threads == {threading.main_thread()}, "reports arrive on the caller's loop"
    phases = list(dict.fromkeys(report.phase for report in told))
    assert phases == ["PULLING", "UNPACKING", "BUILDING_EXT4"]
    for phase in phases:
        reports = [report for report in told if report.phase == phase]
        assert reports[0].fraction == 0
        assert [report.fraction for report in reports] == sorted(report.fraction for report in reports)
        assert (reports[-1].fraction, reports[-1].layers, reports[-1].total_layers) == (1, 2, 2)
        assert reports[-1].bytes == reports[-1].total_bytes > 0


def test_what_a_killed_build_left_is_swept(tmp_path):
    (tmp_path / "build-dead/root/deep").mkdir(parents=True)
    (tmp_path / "other").mkdir()
    assert sweep(tmp_path) == [tmp_path / "build-dead"]
    assert [path.name for path in tmp_path.iterdir()] == ["other"]
