"""The issuer of tokens: what they say, who can check them, and how its keys turn (reference/miren-sandbox.md §8.4)."""

from __future__ import annotations

import stat
from datetime import UTC, datetime, timedelta

import jwt
import pytest

from domain.kernel.errors import Refused
from handlers.identity.issuer import JWKS, Issuer, Workload
from handlers.identity.keys import AHEAD, OVERLAP, ROTATE, KeyRing

URL = "https://issuer.example"
WORKLOAD = Workload("default", "tpl-1", "sb-1", "n1")


class Clock:
    def __init__(self):
        self.now = datetime.now(UTC)

    def __call__(self):
        return self.now


@pytest.fixture
def clock():
    return Clock()


@pytest.fixture
def ring(tmp_path, clock):
    made = KeyRing(tmp_path / "keys", clock)
    made.turn()
    return made


def checked(issuer: Issuer, token: str, audience="strandline", **more):
    """What a verifier that knows nothing but the issuer's documents believes."""
    keys = jwt.PyJWKSet.from_dict(issuer.jwks())
    key = keys[jwt.get_unverified_header(token)["kid"]]
    return jwt.decode(token, key, algorithms=["RS256"], audience=audience, issuer=issuer.url, **more)


def test_a_token_says_who_the_workload_is_and_anybody_can_check_it(ring, clock):
    issuer = Issuer(ring, URL, clock)
    token = issuer.issue(WORKLOAD)
    claims = checked(issuer, token.text)
    assert claims["sub"] == "project:default:template:tpl-1:sandbox:sb-1"
    assert (claims["project"], claims["sandbox_id"], claims["node_id"], claims["identity_type"]) == ("default", "sb-1", "n1", "sandbox")
    assert claims["exp"] - claims["iat"] == 3600
    assert claims["nbf"] == claims["iat"] == int(token.issued_at.timestamp())
    assert checked(issuer, issuer.issue(WORKLOAD).text)["jti"] != claims["jti"]
    assert issuer.discovery()["jwks_uri"] == URL + JWKS
    with pytest.raises(jwt.InvalidAudienceError):
        checked(issuer, token.text, audience="somebody-else")
    assert checked(Issuer(ring, URL, clock, ["a", "b"]), Issuer(ring, URL, clock, ["a", "b"]).issue(WORKLOAD).text, audience="b")


@pytest.mark.parametrize("ttl_s", [59, 86_401])
def test_a_life_out_of_bounds_is_refused(ring, clock, ttl_s):
    with pytest.raises(ValueError, match="60 to 86400"):
        Issuer(ring, URL, clock, ttl_s=ttl_s)


def test_keys_are_sealed_on_disk_and_shared_by_whoever_reads_them(ring, tmp_path, clock):
    other = KeyRing(tmp_path / "keys", clock)
    other.turn()
    assert other.current.kid == ring.current.kid
    assert checked(Issuer(other, URL, clock), Issuer(ring, URL, clock).issue(WORKLOAD).text)
    for path in (tmp_path / "keys").iterdir():
        assert b"PRIVATE" not in path.read_bytes()
        assert path.name == "identity.lock" or stat.S_IMODE(path.stat().st_mode) == 0o600
    (tmp_path / "keys" / "identity.seal").write_text("00" * 32)
    with pytest.raises(Refused):
        KeyRing(tmp_path / "keys", clock).turn()


def test_a_key_is_published_before_it_signs_and_as_long_as_its_tokens_may_live(ring, clock):
    issuer, first = Issuer(ring, URL, clock), ring.current.kid
    clock.now += ROTATE
    ring.turn()
    assert (len(ring.keys), ring.current.kid) == (2, first)
    old = issuer.issue(WORKLOAD).text
    clock.now += AHEAD
    second = ring.current.kid
    assert second != first
    unexpired = {"options": {"verify_exp": False, "verify_nbf": False, "verify_iat": False}}
    assert checked(issuer, issuer.issue(WORKLOAD).text, **unexpired)
    clock.now += OVERLAP - timedelta(seconds=1)
    ring.turn()
    assert checked(issuer, old, **unexpired)
    clock.now += timedelta(seconds=1)
    ring.turn()
    assert [key["kid"] for key in issuer.jwks()["keys"]] == [second]
