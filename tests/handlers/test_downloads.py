"""Artifacts over HTTP: the address and the token from the bus, the bytes from a port of this machine, whole or in part."""

from __future__ import annotations

import asyncio
import hashlib
import http.client
import json
from contextlib import asynccontextmanager
from datetime import UTC, datetime, timedelta
from urllib.parse import urlsplit

import pytest
import structlog
from support.bus import connected
from support.node import BYTES

from bus import http as our_http
from bus import objects
from bus.objects import CHUNK
from bus.subjects import ARTIFACTS_BUCKET
from domain.kernel.errors import Refused
from domain.sandboxes.spec import ArtifactRef
from domain.templates.template import Template
from handlers import downloads
from handlers.downloads import Downloads, Links, part_of

pytestmark = pytest.mark.quick

NOW = datetime(2026, 11, 30, 12, tzinfo=UTC)
SHA256 = hashlib.sha256(BYTES).hexdigest()


def fetched(url: str, token: str | None = None, method: str = "GET", **headers: str) -> tuple[int, dict[str, str], bytes]:
    """Status, headers with lower-case names, and body, by a client that knows nothing of us."""
    said = {name.replace("_", "-"): value for name, value in headers.items()}
    if token is not None:
        said["Authorization"] = f"Bearer {token}"
    connection = http.client.HTTPConnection(urlsplit(url).netloc, timeout=20)
    try:
        connection.request(method, urlsplit(url).path, headers=said)
        answer = connection.getresponse()
        return answer.status, {name.lower(): value for name, value in answer.getheaders()}, answer.read()
    finally:
        connection.close()


def code(answer: tuple[int, dict[str, str], bytes]) -> tuple[int, str]:
    return answer[0], json.loads(answer[2])["error"]["code"]


class Shop:
    """A control plane that serves artifacts, a template's artifact, and the link to it."""

    def __init__(self, place, artifact_id: str, link: dict) -> None:
        self.place, self.artifact_id, self.url, self.token, self.link = place, artifact_id, link["url"], link["token"], link

    async def get(self, *, token: str | None = None, **more: str):
        return await asyncio.to_thread(fetched, more.pop("url", self.url), self.token if token is None else token, **more)


@asynccontextmanager
async def shop(place, tmp_path):
    async with downloads.serving(place.plane.control, 0, tmp_path / "keys"):
        template = await place.get(Template, await place.template())
        link = await place.do("artifact.link", {"artifact_id": template.artifact_id})
        yield Shop(place, template.artifact_id, link)


def test_who_has_a_template_gets_its_artifact_whole_or_in_part(at, tmp_path) -> None:
    async def test(place) -> None:
        async with shop(place, tmp_path) as s:
            assert (s.link["sha256"], s.link["size_bytes"]) == (SHA256, len(BYTES))
            status, headers, body = await s.get()
            assert (status, body) == (200, BYTES)
            assert (headers["etag"], headers["accept-ranges"], headers["strand-artifact-id"]) == (f'"{SHA256}"', "bytes", s.artifact_id)
            status, headers, body = await s.get(Range="bytes=100-199")
            assert (status, body, headers["content-range"]) == (206, BYTES[100:200], f"bytes 100-199/{len(BYTES)}")
            assert (await s.get(Range="bytes=-7"))[2] == BYTES[-7:]
            assert (await s.get(Range="bytes=4000-"))[2] == BYTES[4000:]
            head = await s.get(method="HEAD", Range="bytes=0-1")
            assert (head[0], head[1]["content-length"], head[2]) == (200, str(len(BYTES)), b"")

    at(test)


def test_a_part_counts_only_of_the_bytes_that_the_caller_knows(at, tmp_path) -> None:
    async def test(place) -> None:
        async with shop(place, tmp_path) as s:
            assert (await s.get(Range="bytes=0-9", If_Range=f'"{SHA256}"'))[0] == 206
            assert (await s.get(Range="bytes=0-9", If_Range='"another"'))[::2] == (200, BYTES)
            assert (await s.get(If_None_Match=f'"x", "{SHA256}"'))[::2] == (304, b"")
            beyond = await s.get(Range=f"bytes={len(BYTES)}-")
            assert code(beyond) == (416, "artifact.no-such-range")
            assert beyond[1]["content-range"] == f"bytes */{len(BYTES)}"

    at(test)


def test_without_the_right_token_nobody_learns_anything(at, tmp_path) -> None:
    async def test(place) -> None:
        async with shop(place, tmp_path) as s:
            expires, sha256, signature = s.token.split(".")
            forged = [f"{int(expires) + 1}.{sha256}.{signature}", f"{expires}.{'0' * 64}.{signature}", f"{s.token}0", "", "ü"]
            for token in forged:
                answer = await s.get(token=token)
                assert code(answer) == (401, "artifact.token-invalid")
                assert answer[1]["www-authenticate"] == "Bearer"
            other = s.url.replace(s.artifact_id, "rfs-" + "0" * 24)
            assert code(await s.get(url=other)) == (401, "artifact.token-invalid")
            root = s.url.removesuffix(f"/v1/artifacts/{s.artifact_id}")
            for path in ("/", "/v1/artifacts/", "/v1/artifacts/../../etc/passwd", f"/v1/artifacts/{s.artifact_id}/x"):
                assert code(await s.get(url=root + path)) == (404, "http.unknown-path")
            assert (await s.get(method="PUT"))[0] == 405

    at(test)


def test_a_token_ends_with_its_time_and_with_the_bytes_it_was_for(at, tmp_path) -> None:
    async def test(place) -> None:
        async with shop(place, tmp_path) as s:
            control, began = place.plane.control, datetime.now(UTC)
            control.clock = lambda: began + timedelta(seconds=3599)
            short = (await place.do("artifact.link", {"artifact_id": s.artifact_id, "ttl_s": 1}))["token"]
            assert (await s.get(token=short))[0] == 200
            control.clock = lambda: began + timedelta(seconds=3700)
            assert code(await s.get(token=short)) == (401, "artifact.token-expired")
            control.clock = lambda: began
            (tmp_path / "other").write_bytes(b"built anew")
            await objects.put_file(place.nc, ARTIFACTS_BUCKET, s.artifact_id, tmp_path / "other")
            assert code(await s.get()) == (410, "artifact.gone")
            await objects.delete(place.nc, ARTIFACTS_BUCKET, s.artifact_id)
            assert code(await s.get()) == (410, "artifact.gone")

    at(test)


def test_a_link_is_only_for_who_owns_the_artifact_and_where_it_is_served(at, tmp_path) -> None:
    async def test(place) -> None:
        async with shop(place, tmp_path) as s:
            with pytest.raises(Refused) as foreign:
                await place.caller.command("other", "artifact.link", {"artifact_id": s.artifact_id})
            assert foreign.value.code == "artifact.not-owned"
            with pytest.raises(Refused) as unknown:
                await place.do("artifact.link", {"artifact_id": "rfs-" + "0" * 24})
            assert unknown.value.code == "artifact.not-found"
        with pytest.raises(Refused) as unserved:
            await place.do("artifact.link", {"artifact_id": s.artifact_id})
        assert unserved.value.code == "artifact.not-served"

    at(test)


def test_control_planes_with_the_same_keys_believe_each_others_tokens(tmp_path) -> None:
    ref = ArtifactRef(artifact_id="rfs-" + "1" * 24, sha256=SHA256, size_bytes=1)
    one, two = (Links(downloads.key(tmp_path / "keys"), "http://x") for _ in range(2))
    token = one.token(ref, NOW + timedelta(seconds=5))
    assert two.believed(ref.artifact_id, token, NOW) == SHA256
    assert (tmp_path / "keys" / "downloads.key").stat().st_mode & 0o777 == 0o600
    stranger = Links(downloads.key(tmp_path / "others"), "http://x")
    with pytest.raises(Refused, match="no token"):
        stranger.believed(ref.artifact_id, token, NOW)


def test_a_large_one_is_read_from_the_middle_and_never_held_as_a_whole(server, run, tmp_path) -> None:
    content = b"".join(bytes([n]) * (CHUNK - 1) for n in range(1, 12))
    ref = ArtifactRef(artifact_id="rfs-" + "1" * 24, sha256=hashlib.sha256(content).hexdigest(), size_bytes=len(content))
    (tmp_path / "in").write_bytes(content)
    links = Links(b"k" * 32, "")

    async def main() -> None:
        async with connected(server) as nc:
            await objects.put_file(nc, ARTIFACTS_BUCKET, ref.artifact_id, tmp_path / "in")
            async with our_http.serving(Downloads(nc, links, lambda: NOW).answer, 0) as port:
                url, token = f"http://127.0.0.1:{port}/v1/artifacts/{ref.artifact_id}", links.token(ref, NOW + timedelta(seconds=9))
                assert (await asyncio.to_thread(fetched, url, token))[2] == content
                for first, last in ((CHUNK - 1, CHUNK), (7 * CHUNK + 5, 9 * CHUNK), (len(content) - 1, len(content) + 99)):
                    got = await asyncio.to_thread(fetched, url, token, Range=f"bytes={first}-{last}")
                    assert (got[0], got[2]) == (206, content[first : last + 1])

    run(main())


def test_what_breaks_on_the_way_is_cut_off_and_no_token_is_in_the_log(at, tmp_path, monkeypatch) -> None:
    async def broken(*_):
        yield b"the first few"
        raise Refused("bus.unavailable", "away", retryable=True)

    async def test(place) -> None:
        async with shop(place, tmp_path) as s:
            monkeypatch.setattr(downloads.objectparts, "read", broken)
            with structlog.testing.capture_logs() as logged, pytest.raises((http.client.IncompleteRead, ConnectionResetError)):
                await s.get()
            assert any(entry["event"] == "http.failed" for entry in logged)
            assert s.token not in json.dumps(logged)

    at(test)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("", None), ("bytes=0-0", range(1)), ("bytes=5-", range(5, 10)), ("bytes=-3", range(7, 10)), ("bytes=-30", range(10)),
        ("Bytes = 2 - 4", range(2, 5)), ("bytes=4-99", range(4, 10)), ("bytes=4-3", None), ("bytes=-", None), ("bytes=0-1,3-4", None),
        ("lines=0-1", None), ("bytes=x-1", None), ("bytes=" + "9" * 30 + "-", None),
    ],
)  # fmt: skip
def test_a_range_is_one_part_or_is_ignored(text: str, expected: range | None) -> None:
    assert part_of(text, 10) == expected


@pytest.mark.parametrize(("text", "size"), [("bytes=10-", 10), ("bytes=-0", 10), ("bytes=0-", 0)])
def test_a_range_outside_is_refused(text: str, size: int) -> None:
    with pytest.raises(Refused) as refused:
        part_of(text, size)
    assert (refused.value.code, refused.value.details) == ("artifact.no-such-range", {"size_bytes": size})
