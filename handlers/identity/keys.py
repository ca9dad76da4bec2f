"""The keys that tokens are signed with: a ring of RSA keys in a file, each sealed, shared by the control planes of an installation.

A new key is published an hour before it signs, since verifiers keep what they have read for a while, and an old one for as long as a token
of it may live (reference/miren-sandbox.md §8.4).
"""

from __future__ import annotations

import base64
import fcntl
import hashlib
import json
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any, Final

from cryptography.hazmat.primitives.asymmetric import rsa
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat, load_pem_private_key

from bus import sealed
from bus.accounts import write_secret
from domain.kernel.command import canonical

ROTATE: Final = timedelta(days=30)
AHEAD: Final = timedelta(hours=1)
OVERLAP: Final = timedelta(hours=25)
"""How long a key is published after the next one took over: more than the longest life of a token."""
BITS: Final = 2048
_OWNER: Final = "identity"
_PURPOSE: Final = "identity-key"


@dataclass(frozen=True, slots=True)
class SigningKey:
    """``kid`` is its thumbprint (RFC 7638); ``since``: when it begins to sign."""

    kid: str
    since: datetime
    private: rsa.RSAPrivateKey = field(repr=False)

    def jwk(self) -> dict[str, str]:
        """Its public half (RFC 7517)."""
        return {**_members(self.private), "kid": self.kid, "use": "sig", "alg": "RS256"}


class KeyRing:
    """``directory``: where the installation's authority is. ``turn`` before anything else, and from time to time."""

    def __init__(self, directory: Path, clock: Callable[[], datetime]) -> None:
        self._directory = directory
        self._clock = clock
        self.keys: list[SigningKey] = []
        """Oldest first."""

    @property
    def current(self) -> SigningKey:
        """The one that signs now."""
        now = self._clock()
        return next((key for key in reversed(self.keys) if key.since <= now), self.keys[0])

    def turn(self) -> None:
        """Read the ring, drop what nobody needs any more, make the key that is due. Blocks, at times for a second. Raises ``ValueError``
        for a ring that cannot be read.
        """
        with self._locked():
            seal = self._seal()
            known = self._read(seal)
            keys = self._turned(known)
            if keys != known:
                said = [{"kid": k.kid, "since": k.since.isoformat(), "sealed": _sealed(k, seal)} for k in keys]
                write_secret(self._directory / "identity.json", json.dumps(said))
        self.keys = keys

    def _turned(self, keys: list[SigningKey]) -> list[SigningKey]:
        now, last = self._clock(), len(keys) - 1
        kept = [key for place, key in enumerate(keys) if place == last or now < keys[place + 1].since + OVERLAP]
        if not kept:
            return [_made(now)]
        return [*kept, _made(now + AHEAD)] if now >= kept[-1].since + ROTATE else kept

    @contextmanager
    def _locked(self) -> Iterator[None]:
        self._directory.mkdir(mode=0o700, parents=True, exist_ok=True)
        with (self._directory / "identity.lock").open("w") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            yield

    def _seal(self) -> bytes:
        path = self._directory / "identity.seal"
        if not path.exists():
            write_secret(path, sealed.private_key().hex())
        return bytes.fromhex(path.read_text())

    def _read(self, seal: bytes) -> list[SigningKey]:
        path = self._directory / "identity.json"
        if not path.exists():
            return []
        try:
            return [_opened(one, seal) for one in json.loads(path.read_text())]
        except (KeyError, TypeError) as error:
            raise ValueError(f"{path} is no ring of keys: {error!r}") from None


def _made(since: datetime) -> SigningKey:
    private = rsa.generate_private_key(public_exponent=65_537, key_size=BITS)
    return SigningKey(_thumbprint(private), since, private)


def _sealed(key: SigningKey, seal: bytes) -> str:
    pem = key.private.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption()).decode()
    return sealed.seal(pem, {_OWNER: sealed.public_key(seal)}, _PURPOSE)


def _opened(said: dict[str, Any], seal: bytes) -> SigningKey:
    private = load_pem_private_key(sealed.unseal(said["sealed"], _OWNER, seal, _PURPOSE).encode(), None)
    if not isinstance(private, rsa.RSAPrivateKey):
        raise TypeError("not an RSA key")
    return SigningKey(said["kid"], datetime.fromisoformat(said["since"]), private)


def _members(private: rsa.RSAPrivateKey) -> dict[str, str]:
    numbers = private.public_key().public_numbers()
    return {"kty": "RSA", "n": _number(numbers.n), "e": _number(numbers.e)}


def _number(value: int) -> str:
    return _base64(value.to_bytes((value.bit_length() + 7) // 8))


def _thumbprint(private: rsa.RSAPrivateKey) -> str:
    return _base64(hashlib.sha256(canonical(_members(private))).digest())


def _base64(data: bytes) -> str:
    return base64.urlsafe_b64encode(data).rstrip(b"=").decode()
