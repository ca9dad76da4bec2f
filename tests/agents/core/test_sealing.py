"""The node's own key: made once, kept to itself, told to all in its public half."""

from __future__ import annotations

import os
import stat

import pytest

from agents.fingerprint import Fingerprint, Promise
from agents.sealing import FILE, SealingKey
from bus import sealed
from domain.kernel.errors import Refused

pytestmark = pytest.mark.quick


def test_a_key_is_made_once_and_only_its_owner_reads_it(tmp_path):
    before = os.umask(0)
    try:
        key = SealingKey.of(tmp_path, "n1")
    finally:
        os.umask(before)
    assert [path.name for path in tmp_path.iterdir()] == [FILE]
    assert stat.S_IMODE((tmp_path / FILE).stat().st_mode) == 0o600
    assert SealingKey.of(tmp_path, "n1").public == key.public
    text = sealed.seal("s", {"n1": key.public}, "r")
    assert SealingKey.of(tmp_path, "n1").open(text, "r") == "s"


def test_a_key_that_is_not_whole_is_made_anew(tmp_path):
    """As after a crash of the host, or a lost disk: what was sealed before is closed for ever, and the node works."""
    first = SealingKey.of(tmp_path, "n1")
    (tmp_path / FILE).write_bytes(b"half")
    (tmp_path / f"{FILE[:-4]}.new").write_bytes(b"left by a crash")
    second = SealingKey.of(tmp_path, "n1")
    assert second.public != first.public
    with pytest.raises(Refused) as refusal:
        second.open(sealed.seal("s", {"n1": first.public}, "r"), "r")
    assert refusal.value.code == "registry.secret-unreadable"


def test_the_hello_has_the_public_half(tmp_path, run):
    key = SealingKey.of(tmp_path, "n1")
    hello = run(Fingerprint("b1", (tmp_path,), (), Promise(), key.public).hello())
    assert hello.host["sealing_key"] == key.public
    assert (tmp_path / FILE).read_bytes() not in hello.model_dump_json().encode()
