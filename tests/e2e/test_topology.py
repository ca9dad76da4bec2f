"""The cluster of compose.yaml as plain processes on loopback: the same services, commands and settings, other addresses."""

from __future__ import annotations

import asyncio
import contextlib
import os
import pwd
import re
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml
from support.installation import compose_image
from support.waiting import eventually

from bus.client import Caller
from bus.connection import Connection, connect_from
from bus.server import free_port
from domain.kernel.errors import Refused

COMPOSE = Path(__file__).parents[2] / "compose.yaml"
BIN = Path(sys.executable).parent
POSTGRES = Path("/usr/lib/postgresql/15/bin")


class Topology:
    """Runs services of the compose file."""

    def __init__(self, state: Path) -> None:
        self.state = state
        self.nodes = state.with_name("nodes")
        self.services: dict[str, Any] = yaml.safe_load(COMPOSE.read_text())["services"]
        self.running: dict[str, subprocess.Popen[bytes]] = {}
        self._ports: dict[str, str] = {}

    def here(self, text: str) -> str:
        """A setting with our addresses and directory in it."""
        places = {"/state": str(self.state), "/nodes": str(self.nodes)}
        text = re.sub(r"(?<![\w/.-])/(?:state|nodes)\b", lambda found: places[found[0]], text).replace("0.0.0.0", "127.0.0.1")
        text = re.sub(r"\$\{(\w+):-([^}]*)\}", r"\2", text)
        for host in ("nats-1", "nats-2", "nats-3", "postgres"):
            text = re.sub(rf"\b{host}:(\d+)(?::(\d+))?", lambda found, h=host: self._address(h, found), text)
        return text

    def _address(self, host: str, found: re.Match[str]) -> str:
        ports = [self._ports.setdefault(f"{host}:{port}", str(free_port())) for port in found.groups() if port]
        return ":".join(["127.0.0.1", *ports])

    def start(self, name: str) -> None:
        """Start one service."""
        service = self.services[name]
        argv = [self.here(word) for word in service["command"]]
        env = {k: self.here(v) for k, v in service.get("environment", {}).items()}
        whole = {**os.environ, **env, "PATH": f"{BIN}:{os.environ['PATH']}"}
        with (self.state / f"{name}.log").open("wb") as log:
            self.running[name] = subprocess.Popen(argv, stdout=log, stderr=log, env=whole, start_new_session=True)

    def run(self, name: str) -> None:
        """Run a service that ends."""
        self.start(name)
        assert self.running.pop(name).wait(60) == 0, self.log(name)

    def log(self, name: str) -> str:
        return (self.state / f"{name}.log").read_text(errors="replace")[-3000:]

    def logs(self) -> str:
        return "\n".join(f"== {name}\n{self.log(name)}" for name in self.running)

    def stop(self) -> None:
        for process in reversed(self.running.values()):
            process.terminate()
        for process in self.running.values():
            with contextlib.suppress(subprocess.TimeoutExpired):
                process.wait(20)
            process.kill()
            process.wait()


@contextlib.contextmanager
def postgres(topology: Topology, directory: Path) -> Iterator[None]:
    """The view store, as the compose file's environment asks for it."""
    settings = topology.services["postgres"]["environment"]
    user, password = settings["POSTGRES_USER"], topology.here(settings["POSTGRES_PASSWORD"])
    port = topology.here("postgres:5432").rsplit(":", 1)[1]
    owner = pwd.getpwnam("postgres")
    os.chown(directory, owner.pw_uid, owner.pw_gid)
    secret = directory / "password"
    secret.write_text(password)
    os.chown(secret, owner.pw_uid, owner.pw_gid)
    data = directory / "data"

    def tool(*argv: str, check: bool = True) -> None:
        subprocess.run(
            [str(POSTGRES / argv[0]), *argv[1:]], check=check, user=owner.pw_uid, group=owner.pw_gid, cwd="/", capture_output=True
        )

    tool("initdb", "-D", str(data), "-U", user, f"--pwfile={secret}", "--auth=scram-sha-256", "--no-sync")
    tool("pg_ctl", "-D", str(data), "-w", "-l", str(directory / "log"), "-o", f"-p {port} -k {directory} -h 127.0.0.1", "start")
    try:
        os.environ["PGPASSWORD"] = password
        tool("createdb", "-h", "127.0.0.1", "-p", port, "-U", user, settings["POSTGRES_DB"])
        yield
    finally:
        os.environ.pop("PGPASSWORD", None)
        tool("pg_ctl", "-D", str(data), "-m", "immediate", "stop", check=False)


@pytest.mark.root
@pytest.mark.slow
@pytest.mark.timeout(180)
def test_the_cluster_of_the_compose_file_does_the_main_job(tmp_path: Path) -> None:
    topology = Topology(tmp_path / "state")
    topology.state.mkdir()
    # Not in pytest's own folder, which its user may not enter.
    with tempfile.TemporaryDirectory(prefix="strandline-pg-") as home, postgres(topology, Path(home)):
        try:
            topology.run("setup")
            assert given_to_nodes(topology) == {"connect.json", "node.creds", "ca.pem"}
            for name in ("nats-1", "nats-2", "nats-3", "control-1", "control-2", "projector"):
                topology.start(name)
            asyncio.run(main_job(topology, compose_image(tmp_path / "image")))
        except BaseException as error:
            error.add_note(topology.logs())
            raise
        finally:
            topology.stop()
            for node in ("node-1", "node-2"):
                argv = [sys.executable, "-m", "agents", "--dir", str(topology.nodes / node), "--node", node, "--purge"]
                subprocess.run(argv, check=True, timeout=60)


def given_to_nodes(topology: Topology) -> set[str]:
    """What the nodes' volumes hold; none of it leads out of them."""
    files = [path for path in topology.nodes.glob("*/**/*") if path.is_file()]
    assert not [path for path in files if str(topology.state) in path.read_text()]
    return {path.name for path in files}


@pytest.mark.quick
def test_a_node_of_the_compose_file_is_given_its_own_volume_and_nothing_else(tmp_path: Path) -> None:
    services = Topology(tmp_path / "state").services
    for node in ("node-1", "node-2"):
        assert services[node]["volumes"] == [f"{node}:/nodes/{node}"]
        assert not [word for word in services[node]["command"] if "/state" in word]


async def main_job(topology: Topology, image: str) -> None:
    nc: Connection = await connect_from(topology.state, "test", on_closed=lambda: None, timeout=30)
    async with nc:
        caller = Caller(nc)

        async def ask(view: str, verb: str, **body: Any) -> list[dict[str, Any]]:
            try:
                return (await caller.query("default", view, verb, body))["items"]
            except Refused:
                return []

        async def serving() -> bool:
            try:
                await caller.query("default", "nodes", "list", {})
            except Refused:
                return False
            return True

        await eventually(serving, within=60)
        await asyncio.to_thread(topology.run, "enroll")
        topology.start("node-1")
        topology.start("node-2")

        async def ready() -> bool:
            return [n["status"] for n in await ask("nodes", "list")] == ["ready", "ready"]

        await eventually(ready, within=60)
        made = await caller.command("default", "template.create", {"image": image, "alias": "demo", "memory_mb": 64, "wait_s": 60})
        seen = await caller.query("default", "templates", "get", {"id": "demo", "min_seq": made["seq"]})
        assert seen["items"][0]["replicas"]["ready"] == 2
        asked = [caller.command("default", "sandbox.create", {"template": "demo", "wait_s": 60}) for _ in range(6)]
        sandboxes = [reply["result"] for reply in await asyncio.gather(*asked)]
        assert {s["node_id"] for s in sandboxes} == {"node-1", "node-2"}
        assert {s["state"] for s in sandboxes} == {"RUNNING"}

        for gone in ("control-1", "nats-2"):
            killed = topology.running.pop(gone)
            killed.kill()
            await asyncio.to_thread(killed.wait)
            body = {"sandbox_id": sandboxes[0]["sandbox_id"], "cmd": ["/bin/echo", gone]}
            assert (await caller.command("default", "sandbox.exec", body, timeout=60))["result"]["exit_code"] == 0

        for sandbox in sandboxes:
            await caller.command("default", "sandbox.delete", {"sandbox_id": sandbox["sandbox_id"], "wait_s": 60})
        assert (await ask("events", "verify"))[0]["intact"] is True
