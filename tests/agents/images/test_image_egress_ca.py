"""The egress CA in an image: reference/cubesandbox.md §3.8, target by target."""

from __future__ import annotations

import textwrap

import pytest
from support.images import Pki, check, content_of, layout, listing, stat_of, tar, union

from agents.images import ImageFault, fingerprint
from agents.images.egress_ca import ANCHOR_NAME, ANCHORS, BUNDLES, bake
from agents.images.options import MIB

pytestmark = pytest.mark.quick

OTHER = b"# somebody else's\n-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----"


@pytest.fixture
def pem(pki: Pki) -> bytes:
    return pki.ca.read_bytes()


def rewrapped(pem: bytes) -> bytes:
    """The same certificate, wrapped otherwise, with Windows line ends."""
    body = "".join(pem.decode().split("-----")[2].split())
    return ("-----BEGIN CERTIFICATE-----\r\n" + "\r\n".join(textwrap.wrap(body, 48)) + "\r\n-----END CERTIFICATE-----\r\n").encode()


@pytest.fixture
def baked(tmp_path, pem):
    """Bake into an image of the given layers: what was done, and what there is then."""
    counter = iter(range(100))

    def bake_into(*fills, ca=pem):
        tree, contents = union(tmp_path / f"u{next(counter)}", *map(tar, fills))
        with contents:
            done = bake(tree, contents, ca)
            return done, listing(tree, contents), tree

    return bake_into


def bundles(text):
    def fill(layer):
        for name in BUNDLES:
            layer.file(name, text, mode=0o600)

    return fill


def test_it_is_appended_to_every_bundle_with_a_newline_where_one_is_missing(baked, pem):
    done, files, tree = baked(bundles(OTHER))
    assert done.targets == BUNDLES
    assert not done.seeded
    for name in BUNDLES:
        assert files[name] == OTHER + b"\n" + pem
        assert tree.entry([part.encode() for part in name.split("/")]).node.mode == 0o644
    assert set(done.skipped) == set(ANCHORS)


def test_it_is_put_into_every_anchor_folder(baked, pem):
    done, files, _ = baked(lambda layer: [layer.directory(name) for name in ANCHORS])
    assert done.targets == tuple(f"{name}/{ANCHOR_NAME}" for name in ANCHORS)
    assert all(files[name] == pem for name in done.targets)
    assert not done.seeded


def test_present_everywhere_is_success_however_it_is_wrapped(baked, pem):
    """§11, scenario 7: nothing is written."""
    done, files, _ = baked(bundles(OTHER + b"\n" + rewrapped(pem)))
    assert (done.targets, done.seeded) == ((), False)
    assert {done.skipped[name] for name in BUNDLES} == {"present"}
    assert files[BUNDLES[0]] == OTHER + b"\n" + rewrapped(pem)
    assert done.fingerprint == fingerprint(pem)


def test_present_only_as_an_anchor_is_success_too(baked, pem):
    done, files, _ = baked(lambda layer: layer.file(f"{ANCHORS[0]}/{ANCHOR_NAME}", pem))
    assert (done.targets, done.seeded) == ((), False)
    assert BUNDLES[0] not in files


def test_an_older_ca_in_an_anchor_folder_is_replaced(baked, pem):
    done, files, _ = baked(lambda layer: layer.file(f"{ANCHORS[1]}/{ANCHOR_NAME}", b"the one before"))
    assert done.targets == (f"{ANCHORS[1]}/{ANCHOR_NAME}",)
    assert files[done.targets[0]] == pem


def test_an_image_that_trusts_nobody_is_seeded(baked, pem):
    done, files, _ = baked(lambda layer: layer.file("bin/tool", b"t"))
    assert done.seeded
    assert done.targets == (BUNDLES[0],)
    assert files[BUNDLES[0]] == pem


def test_a_bundle_that_is_a_link_to_another_gets_it_once(baked, pem):
    def fill(layer):
        layer.file(BUNDLES[1], OTHER + b"\n")
        layer.symlink(BUNDLES[2], "/" + BUNDLES[1])

    done, files, _ = baked(fill)
    assert done.targets == (BUNDLES[1],)
    assert done.skipped[BUNDLES[2]] == "present"
    assert files[BUNDLES[1]] == OTHER + b"\n" + pem
    assert files[BUNDLES[2]] == ("->", "/" + BUNDLES[1])


def test_other_names_of_a_bundle_keep_what_they_had(baked):
    def fill(layer):
        layer.file(BUNDLES[0], OTHER)
        layer.hardlink("copy", BUNDLES[0])

    _, files, _ = baked(fill)
    assert files["copy"] == OTHER
    assert files[BUNDLES[0]] != OTHER


def test_links_that_lead_out_and_things_that_are_no_bundles_are_left_alone(baked):
    def fill(layer):
        layer.symlink(BUNDLES[0], "../../../../../../etc/ssl/certs/ca-certificates.crt")
        layer.directory(BUNDLES[1])
        layer.file(BUNDLES[2], bytes(17 * MIB))
        layer.symlink(ANCHORS[0], "loop")
        layer.file(ANCHORS[1], b"a file where a folder should be")

    done, _, _ = baked(fill)
    assert done.skipped == {BUNDLES[0]: "missing", BUNDLES[1]: "no bundle", BUNDLES[2]: "no bundle", **dict.fromkeys(ANCHORS, "missing")}
    assert done.seeded
    assert done.targets == (BUNDLES[0],)


@pytest.mark.parametrize("what", ["empty", "two", "key", "garbage", "no-certificate", "large"])
def test_anything_but_exactly_one_certificate_is_refused(what, pem, pki, baked):
    bad = {
        "empty": b"",
        "two": pem + pem,
        "key": pem + pki.key.read_bytes(),
        "garbage": b"not a certificate",
        "no-certificate": OTHER,
        "large": pem + b"#" * 100_000,
    }[what]
    with pytest.raises(ImageFault) as refusal:
        baked(lambda _layer: None, ca=bad)
    assert refusal.value.code == "egress-ca.invalid"


def test_the_fingerprint_does_not_depend_on_white_space(pem):
    assert fingerprint(pem) == fingerprint(rewrapped(pem)) == fingerprint(b"# a comment\n" + pem)
    assert len(fingerprint(pem)) == 64


def test_a_built_file_system_has_it_and_is_another_than_without(bench, tmp_path, pem):
    image = layout(tmp_path / "l", lambda layer: layer.file(BUNDLES[0], OTHER))
    without = bench.build(image)
    built = bench.build(image, egress_ca=pem)
    check(built.path)
    assert content_of(built.path, "/" + BUNDLES[0]).encode() == OTHER + b"\n" + pem
    assert stat_of(built.path, "/" + BUNDLES[0])["Mode"] == "0644"
    assert built.sha256 != without.sha256
    with pytest.raises(ImageFault):
        bench.build(image, egress_ca=b"")


def test_a_file_system_that_has_it_in_every_target_is_built_as_it_is(bench, tmp_path, pem):
    """§11, scenario 7: success, and not a byte is other than without."""

    def fill(layer):
        for name in BUNDLES:
            layer.file(name, OTHER + b"\n" + pem)
        for name in ANCHORS:
            layer.file(f"{name}/{ANCHOR_NAME}", pem)

    image = layout(tmp_path / "l", fill)
    built = bench.build(image, egress_ca=pem)
    check(built.path)
    assert [content_of(built.path, "/" + name).encode() for name in BUNDLES] == [OTHER + b"\n" + pem] * len(BUNDLES)
    assert built.sha256 == bench.build(image).sha256


def test_a_file_system_without_any_bundle_gets_exactly_one(bench, tmp_path, pem):
    """§11, scenario 7: a distroless image is seeded."""
    image = layout(tmp_path / "l", lambda layer: layer.file("bin/tool", b"t"))
    built = bench.build(image, egress_ca=pem)
    check(built.path)
    assert content_of(built.path, "/" + BUNDLES[0]).encode() == pem
    for absent in (*BUNDLES[1:], *(f"{name}/{ANCHOR_NAME}" for name in ANCHORS)):
        assert stat_of(built.path, "/" + absent) == {}
