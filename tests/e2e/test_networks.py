"""Networks of sandboxes through the whole product: what a caller asks for is what the kernel does."""

from __future__ import annotations

import asyncio
import base64
import contextlib
import socket
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Any

import pytest
from support.installation import Running, compose_image, up
from support.outside import OTHER, PRIVATE, PUBLIC, world
from support.waiting import eventually

from agents.drivers.crun import find
from agents.network.netns import NoNetwork, choose_network
from domain.kernel.errors import Refused
from strandline import Strandline

pytestmark = [pytest.mark.root, pytest.mark.timeout(90), pytest.mark.skipif(find("crun") is None, reason="crun is not installed")]
FORWARD = Path("/proc/sys/net/ipv4/ip_forward")
SERVED = [(address, 80) for address in (PUBLIC, OTHER, PRIVATE)]


@pytest.fixture(scope="module")
def running(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Running]:
    """One installation whose sandboxes get out, into a world of the tests' own."""
    base = tmp_path_factory.mktemp("networks")
    if isinstance(choose_network(base / "probe"), NoNetwork):
        pytest.skip("networks need nftables and a kernel that has them")
    image, forwarding = compose_image(base / "image"), FORWARD.read_text()
    with world(base) as outside, outside.serving(*SERVED), up(base / "state", "--driver", "oci", "--egress") as made:
        asyncio.run(_template(made.dir, image))
        yield made
    FORWARD.write_text(forwarding)


async def _template(directory: Path, image: str) -> None:
    async with Strandline.connect(directory) as s:
        await s.jobs.wait((await s.templates.create(image, alias="base")).job_id)


@contextlib.asynccontextmanager
async def sandbox(s: Strandline, *cmd: str, **wishes: Any) -> AsyncIterator[str]:
    """One that runs as long as the block lasts."""
    told = await s.sandboxes.create("base", cmd=cmd or ("sleep", "1000"), wait_s=30, **wishes)
    assert told.state == "RUNNING"
    yield told.sandbox_id
    await s.sandboxes.delete(told.sandbox_id, wait_s=30)


async def said(s: Strandline, sandbox_id: str, *cmd: str) -> tuple[int, str]:
    done = await s.sandboxes.exec(sandbox_id, ["busybox", *cmd])
    return done.exit_code, base64.b64decode(done.stdout).decode()


TRY = f"for a in {PUBLIC} {OTHER} {PRIVATE}; do busybox nc -w 2 $a 80 -e /bin/true && echo $a; done"
"""Says which of them it reaches."""


def test_a_sandbox_gets_out_as_far_as_its_egress_says(running: Running) -> None:
    async def scenario() -> None:
        async with Strandline.connect(running.dir) as s:
            assert "egress" in (await s.nodes.get("node-1")).drivers[0].flags
            for egress, reaches in (
                (None, {PUBLIC, OTHER}),
                ({"allow": [f"{PRIVATE}:80"], "deny": [OTHER]}, {PUBLIC, PRIVATE}),
                ({"allow": [f"{PUBLIC}:81"], "internet": False}, set()),
            ):
                async with sandbox(s, egress=egress) as made:
                    assert set((await said(s, made, "sh", "-c", TRY))[1].split()) == reaches
            with pytest.raises(Refused) as refusal:
                await s.sandboxes.create("base", egress={"allow": ["example.org"]})
            assert (refusal.value.code, list(refusal.value.details)) == ("command.invalid", ["egress.internet"])

    asyncio.run(scenario())


def test_sandboxes_find_each_other_by_their_names(running: Running) -> None:
    async def scenario() -> None:
        async with Strandline.connect(running.dir) as s, sandbox(s, name="web", labels={"service": "front"}) as made:
            address = (await s.sandboxes.get(made)).address
            for name in (made, "web", "front"):
                code, text = await said(s, made, "nslookup", f"{name}.default.sandbox.internal")
                assert (code, address in text) == (0, True), text
            assert (await said(s, made, "nslookup", "web.other.sandbox.internal"))[0] != 0
            assert f"{address} web {made}" in (await said(s, made, "cat", "/etc/hosts"))[1]

    asyncio.run(scenario())


SERVE_WHEN_TOLD = (
    "/bin/sh",
    "-c",
    "while ! [ -e /serve ]; do busybox usleep 20000; done; busybox nc -l -p 8080 -e /bin/echo hello; sleep 1000",
)


def answer(address: str, port: int) -> bytes:
    with socket.create_connection((address, port), timeout=5) as connection:
        return connection.recv(100)


async def endpoint(s: Strandline, sandbox_id: str) -> str:
    """What the view says of its port."""
    return str((await s.views.get("endpoints", f"{sandbox_id}_8080"))["status"])


def test_ports_are_watched_while_it_runs_and_can_be_waited_for(running: Running) -> None:
    async def scenario() -> None:
        async with Strandline.connect(running.dir) as s, sandbox(s, *SERVE_WHEN_TOLD, ports=[8080]) as made:
            early = await s.sandboxes.wait_port(made, 8080)
            assert (early.settled, early.status) == (False, "declared")
            waiting = asyncio.create_task(s.sandboxes.wait_port(made, 8080, wait_s=30))
            assert (await said(s, made, "touch", "/serve"))[0] == 0
            served = await waiting
            assert (served.settled, served.status) == (True, "listening")
            assert await endpoint(s, made) == "listening"
            assert answer(served.address, 8080) == b"hello\n"

            async def closed() -> bool:
                return await endpoint(s, made) == "closed"

            await eventually(closed)
            with pytest.raises(Refused) as refusal:
                await s.sandboxes.wait_port(made, 9)
            assert (refusal.value.code, refusal.value.details) == ("sandbox.no-port", {"ports": [8080]})
            waiting = asyncio.create_task(s.sandboxes.wait_port(made, 8080, wait_s=30))
            await s.sandboxes.delete(made)
            with pytest.raises(Refused) as refusal:
                await waiting
            assert refusal.value.code == "sandbox.illegal-state", "its end beats the port"
            with pytest.raises(Refused) as refusal:
                await endpoint(s, made)
            assert refusal.value.code == "endpoint.not-found"

    asyncio.run(scenario())
