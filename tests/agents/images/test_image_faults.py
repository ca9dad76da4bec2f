"""Pulling while things go wrong, and being told to stop: what is promised is the whole image or nothing at all."""

from __future__ import annotations

import asyncio
import os
import random
import shutil
import threading
from collections import Counter

import pytest
from support.gateways import Gateway
from support.images import Registry, basic, htpasswd, layout

from agents.images import Auth, BuildLimits, ImageFault, Trust, tools

pytestmark = [
    pytest.mark.skipif(not shutil.which("docker-registry"), reason="needs docker-registry"),
]
FAST = BuildLimits(retry_delay_s=0.01, attempts=3)
PATIENCE_S = 30


@pytest.fixture
def pulled(bench, tmp_path, pki):
    """Build an image of three layers through a gateway that behaves as told: the result, or the refusal's code; and the gateway."""
    contents = [random.Random(seed).randbytes(60_000) for seed in range(3)]
    folder = tmp_path / "l"
    image = layout(folder, *[lambda layer, n=n, data=data: layer.file(f"f{n}", data) for n, data in enumerate(contents)])
    expected = bench.build(image).sha256
    (bench.folder / "out/a.ext4").unlink()

    def pull(behave, limits=FAST, auth=None, configuration=""):
        with Registry(tmp_path) as plain:
            plain.push(folder, "image", "1")
        with Registry(tmp_path, auth=configuration) as registry, Gateway(registry.host, pki, behave) as gateway:
            try:
                built = bench.build(f"docker://{gateway.host}/image:1", trust=Trust(ca_file=pki.ca), limits=limits, auth=auth)
            except ImageFault as fault:
                assert bench.leftovers() == []
                return fault, gateway
            assert built.sha256 == expected
            assert bench.leftovers() == [built.path]
            built.path.unlink()
            return "", gateway

    return pull


def sizes(gateway):
    return [asked.headers.get("range") for asked in gateway.blobs()]


def test_a_broken_download_goes_on_where_it_stopped(pulled):
    cuts = Counter()

    def behave(request):
        cuts[request.path] += 1
        request.forward(cut=1000 if request.of_a_blob and cuts[request.path] < 3 else None)

    fault, gateway = pulled(behave)
    assert not fault
    assert sizes(gateway).count("bytes=1000-") == 3
    assert sizes(gateway).count("bytes=2000-") == 3


def test_a_registry_that_cannot_resume_sends_everything_again(pulled):
    cuts = Counter()

    def behave(request):
        cuts[request.path] += 1
        request.forward(cut=1000 if request.of_a_blob and cuts[request.path] < 2 else None, ranges=False)

    assert pulled(behave)[0] == ""


def test_a_registry_that_always_breaks_is_given_up_and_may_be_tried_later(pulled):
    fault, gateway = pulled(lambda request: request.forward(cut=1000 if request.of_a_blob else None))
    assert (fault.code, fault.retryable) == ("image.unreachable", True)
    assert max(Counter(asked.path for asked in gateway.blobs()).values()) == FAST.attempts


@pytest.mark.parametrize(("status", "code"), [(429, "image.rate-limited"), (503, "image.registry-error")])
def test_a_busy_registry_is_waited_for_a_while(status, code, pulled):
    seen = Counter()

    def once(request):
        seen[request.path] += 1
        if seen[request.path] == 1 and "/image/" in request.path:
            request.answer(status)
        else:
            request.forward()

    assert pulled(once)[0] == ""
    fault, _ = pulled(lambda request: request.answer(status, headers={"Retry-After": "0"}))
    assert (fault.code, fault.retryable) == (code, True)


def test_a_damaged_blob_is_refused(pulled):
    def behave(request):
        request.forward(change=(lambda body: body[:-1] + bytes([body[-1] ^ 1])) if request.of_a_blob else bytes)

    fault, _ = pulled(behave)
    assert (fault.code, fault.retryable) == ("image.digest-mismatch", False)


def test_a_blob_without_end_is_stopped_at_its_size(pulled):
    def behave(request):
        if not request.of_a_blob:
            request.forward()
            return
        request.send_response(200)
        request.end_headers()
        while True:  # until the client hangs up
            request.wfile.write(bytes(65536))

    assert pulled(behave)[0].code == "image.digest-mismatch"


def test_a_manifest_without_end_is_stopped(pulled):
    def behave(request):
        request.send_response(200)
        request.end_headers()
        while True:
            request.wfile.write(b"[" * 65536)

    assert pulled(behave)[0].code == "image.too-large"


def test_redirects_are_followed_without_telling_the_credentials(pulled, tmp_path, pki):
    auth = htpasswd(tmp_path / "htpasswd", "alice", "secret")
    storage_asked = []

    def store(request):  # an object store: it has blobs, and wants no credentials
        storage_asked.append(request.headers.get("Authorization"))
        request.headers["Authorization"] = basic("alice", "secret")
        request.forward()

    def behave(request):
        if request.of_a_blob and request.headers.get("Authorization"):
            request.answer(307, headers={"Location": f"https://{storage.host}{request.path}"})
            return
        storage.upstream = request.server.gateway.upstream
        request.forward()

    with Gateway("", pki, store) as storage:
        fault, gateway = pulled(behave, auth=Auth("alice", "secret"), configuration=auth)
    assert not fault
    assert storage_asked == [None] * 4, "three layers and the configuration"
    assert any("authorization" in asked.headers for asked in gateway.asked)


@pytest.mark.parametrize(
    ("location", "code"),
    [
        ("http://127.0.0.1:1/blob", "image.insecure"),
        ("http://192.0.2.1/blob", "image.insecure"),
        ("file:///etc/passwd", "image.insecure"),
        ("https://127.0.0.1:99999999/blob", "image.registry-error"),
        ("https://[::1/blob", "image.registry-error"),
        ("{self}", "image.registry-error"),
    ],
    ids=["plain-loopback", "plain", "file", "bad-port", "bad-host", "loop"],
)
def test_redirects_that_lead_astray_are_refused(location, code, pulled):
    def behave(request):
        if request.of_a_blob:
            request.answer(302, headers={"Location": location.format(self=request.path)})
        else:
            request.forward()

    assert pulled(behave)[0].code == code


def test_layers_come_several_at_once_and_equal_ones_once(pulled):
    together = threading.Barrier(3)

    def behave(request):
        if request.of_a_blob and len(request.server.gateway.blobs()) > 1:  # the first one is the configuration
            together.wait(PATIENCE_S)
        request.forward()

    fault, gateway = pulled(behave)
    assert not fault
    assert set(Counter(asked.path for asked in gateway.blobs()).values()) == {1}


def test_a_build_cancelled_while_the_registry_dawdles_ends_at_once_and_leaves_nothing(bench, tmp_path, pki):
    layout(tmp_path / "l", lambda layer: layer.file("f", b"x" * 100_000))
    reached, release = threading.Event(), threading.Event()

    def behave(request):
        if request.of_a_blob and len(request.server.gateway.blobs()) > 1:
            request.send_response(200)
            request.end_headers()
            request.wfile.write(request.upstream()[2][:10])
            request.wfile.flush()
            reached.set()
            release.wait(PATIENCE_S)
        else:
            request.forward()

    async def scenario(gateway):
        image = f"docker://{gateway.host}/image:1"
        task = asyncio.create_task(bench.building(image, trust=Trust(ca_file=pki.ca), limits=BuildLimits(timeout_s=PATIENCE_S)))
        assert await asyncio.to_thread(reached.wait, PATIENCE_S)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await asyncio.wait_for(task, PATIENCE_S / 3)

    with Registry(tmp_path) as registry:
        registry.push(tmp_path / "l", "image", "1")
        with Gateway(registry.host, pki, behave) as gateway:
            asyncio.run(scenario(gateway))
            release.set()
    assert bench.leftovers() == []


def test_a_build_cancelled_while_a_program_runs_kills_it_and_leaves_nothing(bench, tmp_path, monkeypatch):
    image = layout(tmp_path / "l", lambda layer: layer.file("f", b"x"))
    programs = tmp_path / "bin"
    programs.mkdir()
    (programs / "debugfs").symlink_to(tools.find("debugfs"))
    fifo = tmp_path / "fifo"
    os.mkfifo(fifo)
    (programs / "mke2fs").write_text(f"#!/bin/sh\nshift $(($# - 2)); echo half > $1\necho $$ > {fifo}\nexec sleep 1000\n")
    (programs / "mke2fs").chmod(0o755)
    monkeypatch.setenv("PATH", f"{programs}:{os.environ['PATH']}")

    async def scenario():
        task = asyncio.create_task(bench.building(image))
        pid = int(await asyncio.to_thread(fifo.read_text))
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await asyncio.wait_for(task, PATIENCE_S)
        return pid

    pid = asyncio.run(scenario())
    with pytest.raises(ProcessLookupError):
        os.kill(pid, 0)
    assert bench.leftovers() == []


def test_a_build_cancelled_while_unpacking_leaves_nothing(bench, tmp_path):
    image = layout(tmp_path / "l", *[lambda layer, n=n: layer.file(f"f{n}", bytes([n]) * 3_000_000) for n in range(8)])

    async def scenario():
        unpacking = asyncio.Event()
        task = asyncio.create_task(
            bench.building(image, progress=lambda told: told.phase == "UNPACKING" and told.layers and unpacking.set())
        )
        await unpacking.wait()
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task

    asyncio.run(scenario())
    assert bench.leftovers() == []


def test_an_earlier_file_stays_until_the_new_one_is_complete(bench, tmp_path):
    good = layout(tmp_path / "l", lambda layer: layer.file("f", b"good"))
    bad = layout(tmp_path / "m", lambda layer: layer.file("../f", b"bad"))
    built = bench.build(good)
    before = built.path.read_bytes()
    with pytest.raises(ImageFault):
        bench.build(bad)
    assert built.path.read_bytes() == before
    assert bench.leftovers() == [built.path]
