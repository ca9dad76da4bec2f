"""Sealed secrets: who can open them, for what, and that nothing in clear passes for one."""

from __future__ import annotations

import base64
import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from bus import sealed
from domain.kernel.errors import Invalid, Refused

pytestmark = pytest.mark.quick

SECRET = "s3cr3t-of-the-test"
HOST = "registry.example:5000"
KEYS = {name: sealed.private_key() for name in ("node-1", "node-2")}
PUBLIC = {name: sealed.public_key(private) for name, private in KEYS.items()}


def refused(code: str, call, *arguments) -> Refused:
    with pytest.raises(Refused) as refusal:
        call(*arguments)
    assert refusal.value.code == code
    assert SECRET not in f"{refusal.value!r} {refusal.value.as_dict()}"
    return refusal.value


@given(st.text(st.characters(exclude_categories=["Cs"]), min_size=1, max_size=600))
def test_every_recipient_opens_it(secret: str) -> None:
    text = sealed.seal(secret, PUBLIC, HOST)
    assert sealed.recipients(text) == set(KEYS)
    assert [sealed.unseal(text, name, private, HOST) for name, private in KEYS.items()] == [secret, secret]


def test_nobody_else_opens_it() -> None:
    text = sealed.seal(SECRET, {"node-1": PUBLIC["node-1"]}, HOST)
    refused("registry.secret-unreadable", sealed.unseal, text, "node-2", KEYS["node-2"], HOST)
    refused("registry.secret-unreadable", sealed.unseal, text, "node-1", KEYS["node-2"], HOST)
    refused("registry.secret-unreadable", sealed.unseal, SECRET, "node-1", KEYS["node-1"], HOST)


def test_it_is_of_no_use_for_another_registry() -> None:
    text = sealed.seal(SECRET, PUBLIC, HOST)
    assert (
        "another registry" in refused("registry.secret-unreadable", sealed.unseal, text, "node-1", KEYS["node-1"], "evil.example").message
    )


def test_a_changed_one_does_not_open() -> None:
    text = sealed.seal(SECRET, PUBLIC, HOST)
    content = json.loads(text.removeprefix(sealed.PREFIX))
    box = bytearray(base64.b64decode(content["box"]))
    box[-1] ^= 1
    content["box"] = base64.b64encode(box).decode()
    changed = sealed.PREFIX + json.dumps(content, separators=(",", ":"), sort_keys=True)
    assert sealed.recipients(changed) == set(KEYS), "from outside it looks the same"
    refused("registry.secret-unreadable", sealed.unseal, changed, "node-1", KEYS["node-1"], HOST)


def test_the_same_secret_sealed_twice_is_two_texts() -> None:
    assert sealed.seal(SECRET, PUBLIC, HOST) != sealed.seal(SECRET, PUBLIC, HOST)


def test_the_longest_secret_for_the_most_nodes_fits() -> None:
    names = [f"{number:063d}" for number in range(sealed.MAX_NODES)]
    text = sealed.seal("x" * sealed.MAX_SECRET, dict.fromkeys(names, PUBLIC["node-1"]), "h" * 255)
    assert len(text) <= sealed.MAX_TEXT
    assert sealed.recipients(text) == set(names)


@pytest.mark.parametrize(
    ("secret", "nodes"),
    [
        ("", PUBLIC),
        (SECRET * 300, PUBLIC),
        (SECRET, {}),
        (SECRET, dict.fromkeys(map(str, range(65)), PUBLIC["node-1"])),
        (SECRET, {"node-1": "no key"}),
        (SECRET, {"node-1": "AAAA"}),
        (SECRET, {"node-1": base64.b64encode(bytes(32)).decode()}),
    ],
)
def test_what_cannot_be_sealed_is_refused(secret: str, nodes: dict[str, str]) -> None:
    with pytest.raises(Invalid) as refusal:
        sealed.seal(secret, nodes, HOST)
    assert SECRET not in str(refusal.value.as_dict())


def unsealed() -> list[str]:
    text = sealed.seal(SECRET, PUBLIC, HOST)
    body = text.removeprefix(sealed.PREFIX)
    return [
        "",
        SECRET,
        sealed.PREFIX,
        sealed.PREFIX + SECRET,
        sealed.PREFIX + json.dumps(SECRET),
        sealed.PREFIX + json.dumps([SECRET]),
        sealed.PREFIX + json.dumps({"box": SECRET, "keys": {}}),
        sealed.PREFIX + json.dumps({"box": 1, "keys": 2}),
        f'{sealed.PREFIX}{{"box":"{SECRET}",{body[1:]}',
        sealed.PREFIX + body[:-1] + f',"note":"{SECRET}"}}',
        body,
        text + " ",
        text.replace("node-1", SECRET.upper()),
        text.replace('"keys"', '"keyz"'),
        text + "x" * sealed.MAX_TEXT,
        "[" * 10_000,
    ]


@pytest.mark.parametrize("number", range(len(unsealed())))
def test_nothing_else_passes_for_a_sealed_one(number: int) -> None:
    refused("template.unsealed-secret", sealed.recipients, unsealed()[number])


@given(st.text(max_size=200))
def test_no_text_makes_trouble(text: str) -> None:
    for prefix in ("", sealed.PREFIX):
        refused("template.unsealed-secret", sealed.recipients, prefix + text)
