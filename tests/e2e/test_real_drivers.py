"""Sandboxes of the drivers that run programs, through the whole product: output, limits, addresses, users, as a caller gets them."""

from __future__ import annotations

import asyncio
import base64
import json
import os
import shutil
import socket
import tarfile
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jwt
import pytest
from nats import NATS
from support import bounds, remains
from support.command_line import strandline
from support.images import layout
from support.inside import reach
from support.installation import Running, compose_image, up
from support.privileges import ROOT
from support.waiting import eventually

from agents.drivers.crun import find
from agents.drivers.driver import Limits
from agents.host import cgroups
from agents.images.writer import LayerTar
from bus import identity
from bus.connection import connect_from
from bus.server import free_port
from domain.kernel.errors import Refused
from strandline import Strandline
from strandline.client.items import Sandbox
from strandline.client.logs import LogLine

OCI = pytest.param("oci", marks=[pytest.mark.root, pytest.mark.skipif(find("crun") is None, reason="crun is not installed")])
PROCESS = pytest.param("process", marks=pytest.mark.skipif(shutil.which("bwrap") is None, reason="bubblewrap is not installed"))
STRUCTURED = """echo '{"msg":"slow","level":"WARN","n":1.10,"source":"me"}'; echo '!ERROR trace_id=4bf9 boom'; echo plain; sleep 1000"""
TALK = ("/bin/sh", "-c", "echo to stdout; echo to stderr >&2; echo to its device >> /dev/stderr; sleep 1000")
SERVE = ("/bin/sh", "-c", "while :; do busybox nc -l -p 80 -e /bin/echo hello; done")
DEAF = ("/bin/sh", "-c", "trap '' TERM; while :; do sleep 1; done")
GREEDY = ("/bin/sh", "-c", "x=strandline; while :; do x=$x$x; done")


@pytest.fixture(scope="module")
def running(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Running]:
    """One installation with every driver that this host and this user have, and a template for each."""
    base = tmp_path_factory.mktemp("real")
    drivers = "oci,process" if ROOT and find("crun") is not None else "process"
    image = compose_image(base / "image")

    async def templates(directory: Path) -> None:
        async with Strandline.connect(directory) as s:
            for driver in drivers.split(","):
                made = await s.templates.create(image, alias=driver, driver=driver)
                await s.jobs.wait(made.job_id)

    with up(base / "state", "--driver", drivers, "--identity-port", str(free_port())) as made:
        asyncio.run(templates(made.dir))
        yield made


async def created(s: Strandline, template: str, *cmd: str, **wishes: object) -> Sandbox:
    """A sandbox that runs."""
    told = await s.sandboxes.create(template, cmd=cmd, wait_s=30, **wishes)
    return await s.sandboxes.get(told.sandbox_id)


@pytest.mark.timeout(90)
@pytest.mark.parametrize("driver", [PROCESS])
def test_a_bound_that_a_driver_cannot_keep_is_refused_or_told(running: Running, driver: str) -> None:
    """Refused to who asks for it; where it is only the template's, the answer says that it does not hold."""

    async def scenario() -> None:
        async with Strandline.connect(running.dir) as s:
            with pytest.raises(Refused) as refusal:
                await s.sandboxes.create(driver, cpu=0.5)
            assert (refusal.value.code, refusal.value.details["fields"]) == ("sandbox.unsupported", ["cpu"])
            told = await s.sandboxes.create(driver, cmd=["sleep", "1000"], memory_mb=64, wait_s=30)
            assert set(told.unenforced) - {"pids"} == {"cpu", "disk_mb"}
            await s.sandboxes.delete(told.sandbox_id)

    asyncio.run(scenario())


@pytest.mark.timeout(90)
@pytest.mark.parametrize("driver", [OCI, PROCESS])
def test_a_sandbox_that_waited_is_handed_over_and_used_like_any_other(running: Running, driver: str) -> None:
    async def scenario() -> None:
        async with Strandline.connect(running.dir) as s:
            pool = await s.pools.set(driver, desired=1, wait_s=30)
            (waiting,) = (await s.pools.get(driver)).members
            given = await s.sandboxes.create(driver, ttl_s=600, wait_s=30)
            assert (given.sandbox_id, given.handed_over, given.state) == (waiting, True, "RUNNING")
            said = await s.sandboxes.exec(given.sandbox_id, ["echo", "mine"])
            assert base64.b64decode(said.stdout) == b"mine\n"
            assert (await s.sandboxes.get(given.sandbox_id)).ends_at
            await s.sandboxes.delete(given.sandbox_id, wait_s=30)
            assert (await s.pools.set(driver, desired=1, wait_s=30)).ready == 1, "it is full again"
            assert (await s.pools.delete(driver, wait_s=30)).state == "GONE"
            lives = [one async for one in s.sandboxes.list(template_id=pool.template_id) if one.state != "DEAD"]
            assert not lives

    asyncio.run(scenario())


def answer(address: str, port: int) -> bytes:
    """What a server there says first; nothing while there is none."""
    try:
        with socket.create_connection((address, port), timeout=5) as connection:
            return connection.recv(100)
    except OSError:
        return b""


def document(url: str) -> dict[str, Any]:
    with urllib.request.urlopen(url, timeout=5) as answer:
        return dict(json.loads(answer.read()))


@pytest.mark.timeout(90)
@pytest.mark.parametrize("driver", [OCI, PROCESS])
def test_a_workload_proves_who_it_is_while_it_lives(running: Running, driver: str) -> None:
    """Its token is checked by nothing but what the issuer publishes (reference/miren-sandbox.md §8.4)."""

    async def scenario() -> None:
        async with Strandline.connect(running.dir) as s, await connect_from(running.dir, "test", on_closed=lambda: None) as nc:
            sandbox = await created(s, driver, "sleep", "1000")
            name = sandbox.sandbox_id

            async def said(script: str) -> str:
                return base64.b64decode((await s.sandboxes.exec(name, ["/bin/sh", "-c", script])).stdout).decode()

            url = await said('printf %s "$STRANDLINE_OIDC_ISSUER_URL"')
            token = await eventually(lambda: said('cat "$STRANDLINE_IDENTITY_TOKEN_PATH"'))
            published = await asyncio.to_thread(document, f"{url}/.well-known/openid-configuration")
            keys = jwt.PyJWKSet.from_dict(await asyncio.to_thread(document, published["jwks_uri"]))
            key = keys[jwt.get_unverified_header(token)["kid"]]
            claims = jwt.decode(token, key, algorithms=["RS256"], audience="strandline", issuer=published["issuer"])
            assert claims["sub"] == f"project:default:template:{sandbox.template_id}:sandbox:{name}"
            assert await identity.ask(nc, sandbox.node_id, "default", name)
            with pytest.raises(Refused, match="no sandbox"):
                await identity.ask(nc, "another", "default", name)
            await s.sandboxes.delete(name, wait_s=30)
            with pytest.raises(Refused, match="no sandbox"):
                await identity.ask(nc, sandbox.node_id, "default", name)

    asyncio.run(scenario())


@pytest.mark.timeout(90)
@pytest.mark.parametrize("driver", [PROCESS])
def test_lines_are_read_as_what_they_say(running: Running, driver: str) -> None:
    async def scenario() -> None:
        async with Strandline.connect(running.dir) as s:
            sandbox = await created(s, driver, "/bin/sh", "-c", STRUCTURED)
            name = sandbox.sandbox_id

            async def read() -> dict[str, LogLine]:
                lines = {line.text: line async for line in s.logs.read(name)}
                return lines if "plain" in lines else {}

            lines = await eventually(read)
            assert (lines["slow"].stream, lines["plain"].stream) == ("stderr", "stdout")
            boom = lines["trace_id=4bf9 boom"]
            assert (boom.stream, boom.trace_id) == ("error", "4bf9")
            ours = {"source": "sandbox", "strandline.sandbox": name, "strandline.container": "main"}
            assert lines["slow"].attributes == {"level": "WARN", "n": "1.10", "-source": "me", **ours}
            (started,) = [line for line in lines.values() if line.stream == "runtime"]
            assert started.text.startswith("[strandline] running, driver ")
            shown = strandline("--dir", str(running.dir), "sandbox", "logs", name, "--stream", "stderr", "--since", "10m")
            assert shown.stdout == b"slow\n"
            await s.sandboxes.delete(name)

    asyncio.run(scenario())


@pytest.mark.timeout(90)
@pytest.mark.parametrize("driver", [OCI])
def test_what_a_sandbox_uses_is_shown_while_it_runs_and_not_afterwards(running: Running, driver: str) -> None:
    async def scenario() -> None:
        async with Strandline.connect(running.dir) as s:
            sandbox = await created(s, driver, "/bin/sh", "-c", "while :; do :; done")

            async def measured() -> dict[str, float] | None:
                (one,) = [one async for one in s.sandboxes.usage(sandbox_id=sandbox.sandbox_id)]
                return one.raw()["measured"]

            said = await eventually(measured, 20)
            assert said["cpu_s"] > 0
            assert said["memory_bytes"] > 0
            top = strandline("--dir", str(running.dir), "sandbox", "top", "-o", "json", f"sandbox_id={sandbox.sandbox_id}")
            assert json.loads(top.stdout)[0]["measured"]["cpu_s"] >= said["cpu_s"]
            await s.sandboxes.delete(sandbox.sandbox_id, wait_s=30)
            assert await measured() is None

    asyncio.run(scenario())


@pytest.mark.timeout(90)
@pytest.mark.parametrize("driver", [OCI, PROCESS])
def test_what_a_sandbox_says_reaches_the_bus_and_the_command_line(running: Running, driver: str) -> None:
    async def scenario() -> None:
        async with Strandline.connect(running.dir) as s, await connect_from(running.dir, "test", on_closed=lambda: None) as nc:
            heard: dict[str, bytes] = {}

            async def hear(message) -> None:
                heard[message.subject] = heard.get(message.subject, b"") + message.data

            await nc.subscribe("strand.log.>", cb=hear)
            await nc.flush()
            sandbox = await created(s, driver, *TALK)
            subject = f"strand.log.default.{sandbox.sandbox_id}"
            await eventually(lambda: b"to stdout" in heard.get(f"{subject}.stdout", b""))
            await eventually(lambda: b"to its device" in heard.get(f"{subject}.stderr", b""))
            assert b"to stderr" in heard[f"{subject}.stderr"]
            assert b"to std" not in heard.get(f"{subject}.runtime", b"")
            shown = strandline("--dir", str(running.dir), "sandbox", "logs", sandbox.sandbox_id)
            for line in (b"to stdout", b"to stderr", b"to its device"):
                assert line in shown.stdout + shown.stderr
            await s.sandboxes.delete(sandbox.sandbox_id)

    asyncio.run(scenario())


@pytest.mark.timeout(90)
@pytest.mark.parametrize("driver", [OCI])
def test_what_was_asked_for_bounds_a_container(running: Running, driver: str) -> None:
    """What the control group of its processes says, inside what it says of itself."""

    async def scenario() -> None:
        async with Strandline.connect(running.dir) as s:
            sandbox = await created(s, driver, "sleep", "1000", cpu=0.5, memory_mb=48)
            (name,) = [name for name in cgroups.names("strandline-") if name.endswith(sandbox.sandbox_id)]
            v2 = cgroups.layout() is cgroups.Layout.V2
            said = [
                (cgroups.MOUNT / (name if v2 else f"{controller}/{name}") / file).read_text().split()[0]
                for controller, file in (
                    [("", "cpu.max"), ("", "memory.max")] if v2 else [("cpu", "cpu.cfs_quota_us"), ("memory", "memory.limit_in_bytes")]
                )
            ]
            assert said == [str(cgroups.PERIOD_US // 2), str(48 << 20)]
            changed = strandline(
                "--dir", str(running.dir), "sandbox", "update-limits", sandbox.sandbox_id, "--cpu", "1.5", "--memory", "64M"
            )
            assert changed.returncode == 0, changed.stderr
            assert bounds.limits(cgroups.Cgroup(name)) == Limits(1.5, 64, 1024)
            seen = await s.sandboxes.get(sandbox.sandbox_id)
            assert (seen.raw()["cpu"], seen.raw()["memory_mb"], seen.state) == (1.5, 64, "RUNNING")
            eaten = await s.sandboxes.exec(sandbox.sandbox_id, GREEDY)
            assert eaten.exit_code == 137, "its child was killed, and it goes on"
            assert (await s.sandboxes.get(sandbox.sandbox_id)).state == "RUNNING"
            await s.sandboxes.delete(sandbox.sandbox_id)

            told = await s.sandboxes.create(driver, cmd=GREEDY, memory_mb=48)
            assert told.unenforced == ("disk_mb",)

            async def dead() -> Sandbox | None:
                seen = await s.sandboxes.get(told.sandbox_id)
                return seen if seen.state == "DEAD" else None

            ended = await eventually(dead, within=30)
            assert ended.reason == "oom"
            events = [event.type async for event in s.events.read(id=told.sandbox_id)]
            assert "sandbox.exited" in events
            assert b"oom" in strandline("--dir", str(running.dir), "sandbox", "get", told.sandbox_id).stdout

    asyncio.run(scenario())


@pytest.mark.timeout(90)
@pytest.mark.root
@pytest.mark.parametrize("driver", [OCI, PROCESS])
def test_a_sandbox_is_reached_where_it_says_as_long_as_it_listens(running: Running, driver: str) -> None:
    async def scenario() -> None:
        async with Strandline.connect(running.dir) as s:
            sandbox = await created(s, driver, *SERVE, ports=[80, 81])
            assert sandbox.address
            assert [port.port for port in sandbox.ports or []] == [80, 81]
            await eventually(lambda: answer(sandbox.address or "", 80) == b"hello\n")
            assert reach(sandbox.address, 81) == "Connection refused"
            await s.sandboxes.delete(sandbox.sandbox_id)
            await eventually(lambda: reach(sandbox.address, 80, timeout=0.2) != "open")

    asyncio.run(scenario())


@pytest.mark.timeout(120)
@pytest.mark.parametrize("driver", [OCI, PROCESS])
def test_a_delete_while_a_start_waits_for_its_port_fences_it(running: Running, driver: str) -> None:
    """It was never up, its start ended as superseded, and nothing of it is left (reference/miren-sandbox.md §2.4b, §11.15, §11.16)."""
    serve = ("/bin/sh", "-c", "while :; do busybox nc -l -p 8080 -e /bin/echo hello; done")

    async def scenario() -> None:
        async with Strandline.connect(running.dir) as s:
            image = (await s.templates.get(driver)).image or ""
            made = await s.templates.create(image, alias=f"{driver}-serving", driver=driver, cmd=serve, probe_port=8080)
            await s.jobs.wait(made.job_id)
            sandbox = (await s.sandboxes.create(f"{driver}-serving", cmd=["sleep", "1000"])).sandbox_id
            await s.sandboxes.wait(sandbox, "NOT_READY")
            assert [step.state for step in await s.sandboxes.steps(sandbox)] == [*("done",) * 5, "started"]
            await s.sandboxes.delete(sandbox, wait_s=20)

            async def told() -> bool:
                return {step.state for step in await s.sandboxes.steps(sandbox)} == {"undone"}

            await eventually(told)
            ended = (await s.sandboxes.get(sandbox)).raw()
            assert (ended["state"], ended["provisioning"]["state"], ended["started_at"]) == ("DEAD", "SUPERSEDED", None)
            assert not list(running.dir.rglob(f"*{sandbox}*"))
            assert not [line for line in remains.remains(running.dir) if sandbox in line]

    asyncio.run(scenario())


async def names_of(nc: NATS, stream: str) -> dict[str, int]:
    """The subjects of a stream, and how many messages each has."""
    return (await nc.jetstream().stream_info(stream, subjects_filter=">")).state.subjects or {}


@pytest.mark.timeout(90)
def test_a_malicious_image_ends_in_a_failed_job_and_nothing_else(running: Running, tmp_path: Path) -> None:
    def escape(layer: LayerTar) -> None:
        layer.entry("../../evil", tarfile.REGTYPE, content=b"evil")

    image = layout(tmp_path / "image", lambda layer: layer.file("good", b"x" * 100_000), escape)
    node = running.dir / "nodes" / "node-1"

    def files() -> set[Path]:
        kept = (node / "journal", node / "logs")
        found = (Path(folder, name) for folder, folders, names in os.walk(node) for name in (*folders, *names))  # bears what goes meanwhile
        return {path for path in found if not any(path.is_relative_to(part) for part in kept)}

    async def scenario() -> None:
        async with Strandline.connect(running.dir) as s, await connect_from(running.dir, "test", on_closed=lambda: None) as nc:
            before, stored = files(), await names_of(nc, "OBJ_artifacts")
            made = await s.templates.create(image)
            job = await s.jobs.wait(made.job_id)
            assert (job.status, job.error["code"]) == ("FAILED", "image.unsafe-path")
            assert (await s.templates.get(made.template_id)).status == "FAILED"
            assert files() - before == set()
            assert await names_of(nc, "OBJ_artifacts") == stored
        assert not list(running.dir.rglob("evil"))

    asyncio.run(scenario())


@pytest.mark.timeout(90)
@pytest.mark.parametrize("driver", [OCI])
def test_root_of_a_container_is_nobody_on_the_host(running: Running, driver: str) -> None:
    """Where the node says so: not every kernel can."""

    async def scenario() -> None:
        async with Strandline.connect(running.dir) as s:
            (node,) = [node async for node in s.nodes.list()]
            flags = {told.name: told.flags for told in node.drivers}[driver]
            assert "userns" not in flags or node.host["roots"] == "overlay"
            sandbox = await created(s, driver, "sleep", "1000")
            said = await s.sandboxes.exec(
                sandbox.sandbox_id, ["/bin/sh", "-c", "id -u; cat /proc/self/uid_map; touch /etc/mine; ls -ln /etc/mine /bin/sh"]
            )
            lines = base64.b64decode(said.stdout).decode().splitlines()
            assert lines[0] == "0"
            (first, host, count) = map(int, lines[1].split())
            assert (first, host != 0, count) == (0, "userns" in flags, 65536 if "userns" in flags else 4294967295)
            assert {line.split()[2] for line in lines[2:]} == {"0"}, "what it makes and what it finds are its own all the same"
            shown = await s.sandboxes.exec(sandbox.sandbox_id, ["/bin/sh", "-c", "ls /sys/class/net; grep NoNewPrivs /proc/self/status"])
            assert set(base64.b64decode(shown.stdout).decode().split()) - {"NoNewPrivs:", "1"} <= {"lo", "eth0"}, (
                "the host's interfaces are not its business"
            )
            await s.sandboxes.delete(sandbox.sandbox_id)

    asyncio.run(scenario())


@pytest.mark.timeout(120)
@pytest.mark.parametrize("driver", [OCI, PROCESS])
def test_a_template_of_a_sandbox_holds_what_was_done_in_it(running: Running, driver: str) -> None:
    """Files, their modes, links and owners as the sandbox sees them; what was removed is not there; the sandbox goes on."""
    prepare = "cd /etc; echo installed > tool; chmod 4750 tool; ln tool same; ln -s tool sign; rm passwd; mkdir -p /opt/deep"
    look = "cd /etc; cat same; readlink sign; stat -c '%a %u %h' tool; test -e passwd || echo removed; test -d /opt/deep && echo deep"

    async def scenario() -> None:
        async with Strandline.connect(running.dir) as s:
            sandbox = await created(s, driver, "/bin/sleep", "1000")
            assert (await s.sandboxes.exec(sandbox.sandbox_id, ["/bin/sh", "-c", prepare])).exit_code == 0
            made = await s.templates.commit(sandbox.sandbox_id, alias=f"{driver}-warm")
            await s.jobs.wait(made.job_id)
            assert (await s.sandboxes.exec(sandbox.sandbox_id, ["/bin/true"])).exit_code == 0, "it goes on"
            await s.sandboxes.delete(sandbox.sandbox_id, wait_s=20)
            copy = await created(s, f"{driver}-warm", "/bin/sleep", "1000")
            seen = await s.sandboxes.exec(copy.sandbox_id, ["/bin/sh", "-c", look])
            assert base64.b64decode(seen.stdout).decode().split("\n")[:5] == ["installed", "tool", "4750 0 2", "removed", "deep"], seen
            await s.sandboxes.delete(copy.sandbox_id)

    asyncio.run(scenario())


async def with_disk(s: Strandline, template: str, disk: str, *cmd: str, read_only: bool = False) -> str:
    """The id of a sandbox that runs, with the disk at /data."""
    mount = {"disk": disk, "mount_path": "/data", "read_only": read_only}
    return (await s.sandboxes.create(template, cmd=cmd or ("sleep", "1000"), disks=[mount], wait_s=30)).sandbox_id


async def inside(s: Strandline, sandbox: str, script: str) -> str:
    done = await s.sandboxes.exec(sandbox, ["/bin/sh", "-c", script])
    assert done.exit_code == 0, done
    return base64.b64decode(done.stdout).decode().strip()


@pytest.mark.slow
@pytest.mark.timeout(120)
@pytest.mark.parametrize("driver", [OCI, PROCESS])
def test_data_outlives_its_sandbox_and_goes_from_one_to_the_next(running: Running, driver: str) -> None:
    async def scenario() -> None:
        async with Strandline.connect(running.dir) as s:
            made = await s.disks.create(driver, 64, wait_s=30)
            assert (made.status, made.settled) == ("PROVISIONED", True)
            there = await s.disks.get(driver)
            assert (there.filesystem, there.quota) == ("ext4" if ROOT else None, ROOT)
            one = await with_disk(s, driver, driver)
            await inside(s, one, "echo kept > /data/file")
            with pytest.raises(Refused) as busy:
                await with_disk(s, driver, driver)
            assert (busy.value.code, busy.value.details["sandbox_id"]) == ("disk.busy", one)
            if ROOT:
                assert (await s.disks.snapshot(driver, "then", wait_s=30)).settled
                await inside(s, one, "echo lost > /data/file")
                await s.disks.create(f"{driver}-copy", 96, source=(driver, "then"), wait_s=30)
            await s.sandboxes.stop(one, grace_s=0, wait_s=30)
            two = await with_disk(s, driver, driver, read_only=True)
            assert (
                await inside(s, two, "cat /data/file; touch /data/new 2>/dev/null || echo sealed")
                == f"{'lost' if ROOT else 'kept'}\nsealed"
            )
            if ROOT:
                other = await with_disk(s, driver, f"{driver}-copy")
                assert await inside(s, other, "cat /data/file; df -m /data | tail -1 | awk '{print ($2 > 64)}'") == "kept\n1"
                await s.sandboxes.delete(other, wait_s=30)
            with pytest.raises(Refused) as used:
                await s.disks.delete(driver)
            assert used.value.code == "disk.in-use"
            running.kill("node-1")
            assert (await s.disks.release(driver, force=True, wait_s=30)).settled
            leases = {lease.sandbox_id: lease async for lease in s.disks.leases(disk=driver)}
            assert {leases[one].status, leases[two].status} == {"RELEASED"}
            assert (leases[one].epoch, leases[two].epoch) == (1, 2)
            assert (await s.disks.delete(driver, wait_s=30)).status == "DELETED"
            assert driver not in [disk.disk_id async for disk in s.disks.list()]

    asyncio.run(scenario())
    assert f"{running.dir}/nodes/node-1/volumes/" not in Path("/proc/self/mounts").read_text(), "nothing of them is mounted any more"


@pytest.mark.slow
@pytest.mark.timeout(120)
@pytest.mark.parametrize("driver", [PROCESS])
def test_the_next_one_waits_for_the_mount_and_not_for_the_lease(running: Running, driver: str) -> None:
    """reference/miren-sandbox.md §11, scenario 29, as the log tells it."""

    async def scenario() -> None:
        async with Strandline.connect(running.dir) as s:
            await s.disks.create("handed", 64, wait_s=30)
            one = await with_disk(s, driver, "handed", *DEAF)
            await s.sandboxes.stop(one, grace_s=1)
            two = await with_disk(s, driver, "handed")
            log = [event async for event in s.events.read()]
            at = {(event.type, event.id, event.data.get("sandbox_id")): event.seq for event in log}
            released = at["disk-lease.released", f"{one}_handed", None]
            down, detached = at["sandbox.destroyed", one, None], at["disk.detached", "handed", one]
            bound, up_ = at["disk-lease.bound", f"{two}_handed", None], at["sandbox.started", two, None]
            assert released < down < detached < bound < up_
            await s.sandboxes.delete(two, wait_s=30)
            await s.disks.delete("handed", wait_s=30)

    asyncio.run(scenario())
