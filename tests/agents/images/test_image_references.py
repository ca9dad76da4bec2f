from __future__ import annotations

from pathlib import Path

import pytest

from agents.images import ImageFault
from agents.images.reference import ArchiveRef, LayoutRef, RemoteRef, parse

BASE = Path("/base")
HEX = "0" * 64

pytestmark = pytest.mark.quick


@pytest.mark.parametrize(
    ("text", "meant"),
    [
        ("oci:folder", LayoutRef(BASE / "folder", None)),
        ("oci:folder:1.2", LayoutRef(BASE / "folder", "1.2")),
        ("oci:/abs/folder:t", LayoutRef(Path("/abs/folder"), "t")),
        ("oci:with:colon/folder", LayoutRef(BASE / "with:colon/folder", None)),
        ("oci-archive:image.tar", ArchiveRef(BASE / "image.tar", None)),
        ("oci-archive:sub/image.tar:t", ArchiveRef(BASE / "sub/image.tar", "t")),
        ("docker://host.example/name", RemoteRef("host.example", "name", "latest", None)),
        ("docker://localhost:5000/a/b/c:1", RemoteRef("localhost:5000", "a/b/c", "1", None)),
        (f"host:1/name:t@sha256:{HEX}", RemoteRef("host:1", "name", "t", f"sha256:{HEX}")),
        ("alpine:3", RemoteRef("registry-1.docker.io", "library/alpine", "3", None)),
        ("docker.io/who/what", RemoteRef("registry-1.docker.io", "who/what", "latest", None)),
    ],
)
def test_a_reference_means_one_place(text, meant):
    assert parse(text, BASE) == meant


@pytest.mark.parametrize(
    "text",
    [
        *("", "oci:", "oci-archive:", "oci::tag", "-rf", "docker://-x/y", "host.example/", "host.example/UPPER", "host.example/a b"),
        *("host.example/name:", "host.example/name:-bad", "host.example/name@sha256:12", "host.example/a//b", "a" * 600, "oci:a\0b"),
        *("docker://user:password@host.example/name", "http://host.example/name", "host.example:port/x", "host.example/../../etc"),
    ],
)
def test_what_is_no_reference_is_refused(text):
    with pytest.raises(ImageFault) as refusal:
        parse(text, BASE)
    assert refusal.value.code == "image.bad-reference"
    assert not refusal.value.retryable
