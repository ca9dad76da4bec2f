"""A sealed secret: a text that only the nodes named in it can open. The text may be stored anywhere; the secret in it, nowhere.

``sealed-1.`` and JSON. ``box`` has the secret under a key of its own (XSalsa20-Poly1305); ``keys`` has that key once per node, each in an
X25519 sealed box, so that a long secret for many nodes stays a short text. Inside the box the secret lies with the purpose that it was
sealed for: whoever copies the text into another order, for a registry of his own, gets nothing.
"""

from __future__ import annotations

import base64
import binascii
import re
from collections.abc import Mapping
from typing import Any, Final

import orjson
from nacl.exceptions import CryptoError
from nacl.public import PrivateKey, PublicKey, SealedBox
from nacl.secret import SecretBox
from nacl.utils import random

from domain.kernel.command import canonical
from domain.kernel.errors import Invalid, Refused
from domain.kernel.ids import NAME_PATTERN

PREFIX: Final = "sealed-1."
MAX_TEXT: Final = 16_384
"""Characters of a sealed secret (contract.md, ``registry_secret``)."""
MAX_SECRET: Final = 3072
"""Bytes of a secret. The longest that registries hand out, a service account's key file, has about 2400."""
MAX_NODES: Final = 64
"""How many nodes may open one. That many of the longest names, and the longest secret, make no more than ``MAX_TEXT``."""
_KEY_BOX: Final = SecretBox.KEY_SIZE + 48
"""Bytes of a sealed box with a key in it: 32 of an ephemeral public key and 16 of an authenticator are its overhead."""
_LEAST_BOX: Final = SecretBox.NONCE_SIZE + SecretBox.MACBYTES + 1


def seal(secret: str, nodes: Mapping[str, str], purpose: str) -> str:
    """``secret`` for ``nodes``: name → public key, as ``public_key`` gives it. Raises ``command.invalid`` for what cannot be sealed."""
    if not secret or len(secret.encode()) > MAX_SECRET:
        raise _unfit(f"1 to {MAX_SECRET} bytes")
    if not 0 < len(nodes) <= MAX_NODES:
        raise _unfit(f"for 1 to {MAX_NODES} nodes")
    key = random(SecretBox.KEY_SIZE)
    try:
        keys = {name: _text(SealedBox(PublicKey(_bytes(public))).encrypt(key)) for name, public in nodes.items()}
    except (ValueError, CryptoError):
        raise _unfit("a node's public key is none") from None
    return _written(_text(bytes(SecretBox(key).encrypt(canonical([purpose, secret])))), keys)


def recipients(text: str) -> frozenset[str]:
    """The nodes that can open ``text``. Raises ``template.unsealed-secret``, which quotes nothing of it, if it is not of this form."""
    return frozenset(_read(text)["keys"])


def unseal(text: str, node: str, private: bytes, purpose: str) -> str:
    """The secret, for that node with its private key. Raises ``registry.secret-unreadable``."""
    try:
        read = _read(text)
        key = SealedBox(PrivateKey(private)).decrypt(_bytes(read["keys"][node]))
        sealed_for, secret = orjson.loads(SecretBox(key).decrypt(_bytes(read["box"])))
    except (Refused, KeyError, ValueError, CryptoError):
        raise _unreadable("this node cannot open the registry's secret") from None
    if sealed_for != purpose:
        raise _unreadable("the secret was sealed for another registry")
    return str(secret)


def private_key() -> bytes:
    """A new one."""
    return bytes(PrivateKey.generate())


def public_key(private: bytes) -> str:
    """What is told to the world: 32 bytes in base64."""
    return _text(bytes(PrivateKey(private).public_key))


def _read(text: str) -> dict[str, Any]:
    """``text`` taken apart; exactly what ``seal`` writes and nothing more, so that nothing in clear can travel beside the boxes."""
    try:
        read = orjson.loads(text.removeprefix(PREFIX)) if len(text) <= MAX_TEXT else {}
        box, keys = read["box"], read["keys"]
        fits = (
            len(_bytes(box)) >= _LEAST_BOX
            and 0 < len(keys) <= MAX_NODES
            and all(re.fullmatch(NAME_PATTERN, name) and len(_bytes(wrapped)) == _KEY_BOX for name, wrapped in keys.items())
            and _written(box, keys) == text
        )
    except (ValueError, KeyError, TypeError, AttributeError):
        fits = False
    if not fits:
        raise Refused("template.unsealed-secret", "the registry's secret is not sealed; it was not kept, but it did travel: replace it")
    return {"box": box, "keys": keys}


def _written(box: str, keys: Mapping[str, str]) -> str:
    return PREFIX + canonical({"box": box, "keys": dict(keys)}).decode()


def _text(data: bytes) -> str:
    return base64.b64encode(data).decode()


def _bytes(text: str) -> bytes:
    """Raises ``ValueError`` for anything but the one base64 form of some bytes."""
    data = base64.b64decode(text, validate=True)
    if _text(data) != text:
        raise binascii.Error("not canonical")
    return data


def _unfit(why: str) -> Invalid:
    return Invalid("the registry's secret cannot be sealed", {"registry_secret": why})


def _unreadable(message: str) -> Refused:
    return Refused("registry.secret-unreadable", message)
