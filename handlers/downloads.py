"""Artifacts over HTTP, for tools that speak no NATS: ``GET /v1/artifacts/<id>`` with a token (reference/cubesandbox.md §3.8).

``artifact.link`` gives address and token. A token is a promise and not a record: it says until when it holds and for which bytes, signed
with a key that control planes share (docs/adr/0020-artifacts-over-http.md). So nothing is stored that could leak.
"""

from __future__ import annotations

import asyncio
import base64
import contextlib
import hashlib
import hmac
import json
import re
import secrets
from collections.abc import AsyncIterator, Callable
from datetime import datetime
from http import HTTPStatus
from pathlib import Path
from typing import Final

import structlog

from bus import http, objectparts, objects
from bus.accounts import write_secret
from bus.connection import Client
from bus.http import Answer, Asked
from bus.objects import Stat
from bus.subjects import ARTIFACTS_BUCKET
from domain.kernel.errors import Refused
from domain.kernel.ids import ARTIFACT_PATTERN
from domain.sandboxes.spec import ArtifactRef
from handlers.control import Control

log = structlog.get_logger(__name__)

PLACE: Final = "/v1/artifacts/"
STATUS: Final = {
    "artifact.token-invalid": HTTPStatus.UNAUTHORIZED,
    "artifact.token-expired": HTTPStatus.UNAUTHORIZED,
    "artifact.gone": HTTPStatus.GONE,
    "artifact.no-such-range": HTTPStatus.REQUESTED_RANGE_NOT_SATISFIABLE,
    "http.unknown-path": HTTPStatus.NOT_FOUND,
    "bus.unavailable": HTTPStatus.SERVICE_UNAVAILABLE,
}

_ARTIFACT: Final = re.compile(ARTIFACT_PATTERN)
_TOKEN: Final = re.compile(r"([0-9]{1,12})\.([0-9a-f]{64})\.([0-9a-f]{64})")
_RANGE: Final = re.compile(r"bytes=([0-9]{0,18})-([0-9]{0,18})")
_KEY_BYTES: Final = 32

Clock = Callable[[], datetime]


def key(directory: Path) -> bytes:
    """The key that tokens are signed with, kept in ``directory`` (the installation's ``keys``); made on first use."""
    path = directory / "downloads.key"
    if not path.exists():
        write_secret(path, secrets.token_hex(_KEY_BYTES))
    return bytes.fromhex(path.read_text())


class Links:
    """Makes tokens and believes them. ``base``: where callers reach what serves them, without a slash at its end."""

    def __init__(self, secret: bytes, base: str) -> None:
        self.base = base
        self._secret = secret

    def url(self, artifact_id: str) -> str:
        return f"{self.base}{PLACE}{artifact_id}"

    def token(self, ref: ArtifactRef, until: datetime) -> str:
        """``<unix time>.<sha256 of the bytes>.<signature>``"""
        expires = f"{until.timestamp():.0f}"
        return f"{expires}.{ref.sha256}.{self._signature(ref.artifact_id, ref.sha256, expires)}"

    def believed(self, artifact_id: str, token: str, now: datetime) -> str:
        """The SHA-256 of what the token is for. Raises ``Refused``: ``artifact.token-invalid``, ``artifact.token-expired``."""
        found = _TOKEN.fullmatch(token)
        expires, sha256, signature = found.groups() if found else ("0", "", "")
        if not hmac.compare_digest(self._signature(artifact_id, sha256, expires), signature):
            raise Refused("artifact.token-invalid", f"this is no token for {artifact_id}: ask artifact.link for one")
        if int(expires) <= now.timestamp():
            raise Refused("artifact.token-expired", "the token has expired: ask artifact.link for another")
        return sha256

    def _signature(self, *parts: str) -> str:
        return hmac.new(self._secret, "\0".join(("artifact", *parts)).encode(), hashlib.sha256).hexdigest()


@contextlib.asynccontextmanager
async def serving(control: Control, port: int, keys: Path, url: str | None = None) -> AsyncIterator[int]:
    """Serve artifacts on a port of 127.0.0.1, and have ``artifact.link`` answered; the port, a free one for 0. Raises ``OSError``."""
    links = Links(await asyncio.to_thread(key, keys), "")

    def now() -> datetime:
        return control.clock()

    async with http.serving(Downloads(control.nc, links, now).answer, port) as bound:
        links.base = (url or f"http://{http.LOOPBACK}:{bound}").rstrip("/")
        control.links = links
        log.info("artifacts.serving", address=f"{http.LOOPBACK}:{bound}")
        try:
            yield bound
        finally:
            control.links = None


class Downloads:
    """The handler of the HTTP port. Whoever has no token learns nothing, and costs the bus nothing."""

    def __init__(self, nc: Client, links: Links, clock: Clock) -> None:
        self._nc = nc
        self._links = links
        self._clock = clock

    async def answer(self, asked: Asked) -> Answer:
        """One request."""
        try:
            return await self._artifact(asked)
        except Refused as refused:
            return refusal(refused)

    async def _artifact(self, asked: Asked) -> Answer:
        name = asked.path.removeprefix(PLACE)
        if not asked.path.startswith(PLACE) or not _ARTIFACT.fullmatch(name):
            raise Refused("http.unknown-path", f"GET {PLACE}<artifact id>")
        scheme, _, token = asked.headers.get("authorization", "").partition(" ")
        sha256 = self._links.believed(name, token.strip() if scheme.lower() == "bearer" else "", self._clock())
        what = await objects.stat(self._nc, ARTIFACTS_BUCKET, name)
        if what is None or what.sha256 != sha256:
            raise Refused("artifact.gone", "what this token was for is not stored any more: ask artifact.link again")
        return self._bytes(what, asked)

    def _bytes(self, what: Stat, asked: Asked) -> Answer:
        headers = _about(what)
        if _lists(asked.headers.get("if-none-match", ""), headers["ETag"]):
            return Answer(HTTPStatus.NOT_MODIFIED, headers)
        wanted = _wanted(asked, what.size, headers["ETag"])
        status, part = (HTTPStatus.OK, range(what.size)) if wanted is None else (HTTPStatus.PARTIAL_CONTENT, wanted)
        if wanted is not None:
            headers["Content-Range"] = f"bytes {part.start}-{part.stop - 1}/{what.size}"
        parts = objectparts.read(self._nc, ARTIFACTS_BUCKET, what, part.start, len(part))
        return Answer(status, headers, parts=parts, size=len(part))


def _about(what: Stat) -> dict[str, str]:
    """``Repr-Digest`` (RFC 9530) is of the whole, whatever part is sent."""
    return {
        "Content-Type": "application/octet-stream",
        "Content-Disposition": f'attachment; filename="{what.name}.ext4"',
        "Accept-Ranges": "bytes",
        "ETag": f'"{what.sha256}"',
        "Repr-Digest": f"sha-256=:{base64.b64encode(bytes.fromhex(what.sha256)).decode()}:",
        "Strand-Artifact-Id": what.name,
        "Cache-Control": "private, no-transform",
    }


def _wanted(asked: Asked, size: int, etag: str) -> range | None:
    """The part that is asked for, None for all of it: ranges count for GET only, and not when ``If-Range`` names other bytes."""
    if asked.method != "GET" or asked.headers.get("if-range", etag) != etag:
        return None
    return part_of(asked.headers.get("range", ""), size)


def part_of(text: str, size: int) -> range | None:
    """What a ``Range`` header means; None when it is to be ignored: none, another unit, several, or not well formed (RFC 9110 §14.2).

    Raises ``Refused`` (``artifact.no-such-range``) when it lies outside.
    """
    found = _RANGE.fullmatch(text.replace(" ", "").lower())
    if found is None or not any(found.groups()):
        return None
    first, last = found.groups()
    if not first:
        part = range(max(size - int(last), 0), size)
    elif last and int(last) < int(first):
        return None
    else:
        part = range(int(first), min(int(last) + 1, size) if last else size)
    if not part:
        raise Refused("artifact.no-such-range", f"there are {size} bytes", details={"size_bytes": size})
    return part


def _lists(text: str, etag: str) -> bool:
    """Does an ``If-None-Match`` name these bytes?"""
    return text.strip() == "*" or etag in {tag.strip().removeprefix("W/") for tag in text.split(",")}


def refusal(refused: Refused) -> Answer:
    """The same ``error`` object that replies on the bus have (design.md §3)."""
    status = STATUS.get(refused.code, HTTPStatus.INTERNAL_SERVER_ERROR)
    headers = {"Content-Type": "application/json"}
    if status is HTTPStatus.UNAUTHORIZED:
        headers["WWW-Authenticate"] = "Bearer"
    if "size_bytes" in refused.details:
        headers["Content-Range"] = f"bytes */{refused.details['size_bytes']}"
    return Answer(status, headers, json.dumps({"ok": False, "error": refused.as_dict()}).encode())
