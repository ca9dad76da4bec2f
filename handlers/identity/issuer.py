"""What a token says, and how others find out whether it is true (RFC 7519, OpenID Connect Discovery 1.0).

Claims and bounds are those of reference/miren-sandbox.md §8.4, with a project where that has an organisation and an app.
"""

from __future__ import annotations

import secrets
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Any, Final

import jwt

from bus.identity import Token
from handlers.identity.keys import KeyRing

AUDIENCE: Final = ("strandline",)
TTL_S: Final = 3600
LEAST_TTL_S: Final = 60
MOST_TTL_S: Final = 86_400
JWKS: Final = "/.well-known/strandline/jwks"
DISCOVERY: Final = "/.well-known/openid-configuration"


@dataclass(frozen=True, slots=True)
class Workload:
    """Whom a token is for. None of these names can have a ``:`` in it."""

    project: str
    template: str
    sandbox: str
    node: str


class Issuer:
    """``url``: where verifiers reach it, and what tokens name. ``ttl_s``: how long one holds, 60 … 86,400."""

    def __init__(
        self, ring: KeyRing, url: str, clock: Callable[[], datetime], audience: Sequence[str] = AUDIENCE, ttl_s: int = TTL_S
    ) -> None:
        if not LEAST_TTL_S <= ttl_s <= MOST_TTL_S:
            raise ValueError(f"a token holds {LEAST_TTL_S} to {MOST_TTL_S} s, not {ttl_s}")
        self.url = url
        self._ring = ring
        self._clock = clock
        self._audience = list(audience)
        self._ttl = timedelta(seconds=ttl_s)

    def issue(self, workload: Workload) -> Token:
        """A new token. Takes a millisecond of processor time."""
        now, key = self._clock().astimezone(UTC).replace(microsecond=0), self._ring.current
        until = now + self._ttl
        claims: dict[str, Any] = {
            "iss": self.url,
            "sub": f"project:{workload.project}:template:{workload.template}:sandbox:{workload.sandbox}",
            "aud": self._audience,
            "iat": now,
            "nbf": now,
            "exp": until,
            "jti": secrets.token_hex(16),
            "project": workload.project,
            "template_id": workload.template,
            "sandbox_id": workload.sandbox,
            "node_id": workload.node,
            "identity_type": "sandbox",
        }
        return Token(jwt.encode(claims, key.private, algorithm="RS256", headers={"kid": key.kid}), now, until)

    def discovery(self) -> dict[str, Any]:
        """What verifiers begin with."""
        return {
            "issuer": self.url,
            "jwks_uri": f"{self.url}{JWKS}",
            "response_types_supported": ["id_token"],
            "subject_types_supported": ["public"],
            "id_token_signing_alg_values_supported": ["RS256"],
            "claims_supported": ["iss", "sub", "aud", "exp", "iat", "nbf", "jti", "project", "template_id", "sandbox_id", "node_id"],
        }

    def jwks(self) -> dict[str, Any]:
        """Every key that a token may be signed with."""
        return {"keys": [key.jwk() for key in self._ring.keys]}
