"""NATS keys and JWTs: operator, accounts, users and activations, as ``nsc`` would write them (nkeys, JWT v2, ed25519)."""

from __future__ import annotations

import base64
import hashlib
import json
import os
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import IntEnum
from typing import Any, Final, Self

import nkeys  # type: ignore[import-untyped]  # it ships no annotations

UNLIMITED: Final = {"subs": -1, "data": -1, "payload": -1, "imports": -1, "exports": -1, "wildcards": True, "conn": -1, "leaf": -1}
"""An account's limits; those of JetStream are absent, which means none of it."""
JETSTREAM: Final = {"mem_storage": -1, "disk_storage": -1, "streams": -1, "consumer": -1}


class Kind(IntEnum):
    """What a key is for: its prefix byte."""

    OPERATOR = nkeys.PREFIX_BYTE_OPERATOR
    ACCOUNT = nkeys.PREFIX_BYTE_ACCOUNT
    USER = nkeys.PREFIX_BYTE_USER


@dataclass(frozen=True, slots=True)
class Key:
    """A key pair. ``seed`` is the secret (``S…``), ``public`` the name by which everybody knows it."""

    public: str
    seed: str = field(repr=False)

    @classmethod
    def new(cls, kind: Kind) -> Self:
        return cls.read(nkeys.encode_seed(os.urandom(32), kind).decode())

    @classmethod
    def read(cls, seed: str) -> Self:
        """The key of a seed. Raises ``ValueError``."""
        try:
            return cls(nkeys.from_seed(bytearray(seed.encode())).public_key.decode(), seed)
        except nkeys.NkeysError as error:
            raise ValueError(f"not a seed: {error!r}") from None

    def sign(self, data: bytes) -> bytes:
        return bytes(nkeys.from_seed(bytearray(self.seed.encode())).sign(data))


def encode(issuer: Key, subject: str, name: str, claims: Mapping[str, Any], expires: float | None = None) -> str:
    """A signed JWT. ``expires`` in seconds since 1970."""
    body: dict[str, Any] = {"iat": int(time.time()), "iss": issuer.public, "name": name, "sub": subject, "nats": {**claims, "version": 2}}
    if expires is not None:
        body["exp"] = int(expires)
    digest = hashlib.new("sha512_256", json.dumps(body).encode()).digest()
    body["jti"] = base64.b32encode(digest).decode().rstrip("=")
    text = f"{_b64(json.dumps({'typ': 'JWT', 'alg': 'ed25519-nkey'}).encode())}.{_b64(json.dumps(body).encode())}"
    return f"{text}.{_b64(issuer.sign(text.encode()))}"


def _b64(data: bytes) -> str:
    return base64.urlsafe_b64encode(data).rstrip(b"=").decode()


def credentials(account: Key, name: str, *, permissions: Mapping[str, Any] | None = None, expires: float | None = None) -> str:
    """The content of a credentials file: a new user of ``account``, with its secret."""
    user = Key.new(Kind.USER)
    claims = {"type": "user", "subs": -1, "data": -1, "payload": -1, **(permissions or {})}
    token = encode(account, user.public, name, claims, expires)
    return (
        f"-----BEGIN NATS USER JWT-----\n{token}\n------END NATS USER JWT------\n\n"
        f"-----BEGIN USER NKEY SEED-----\n{user.seed}\n------END USER NKEY SEED------\n"
    )
