"""A data directory and what runs in it: nats-server, control plane, projector, agents (contract.md "The process, for tools")."""

from __future__ import annotations

import asyncio
import contextlib
import fcntl
import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import IO, Any, Final

from bus.accounts import Authority, push, write_secret
from bus.client import Caller
from bus.connection import Connection, connect, connect_from
from bus.requests import call
from bus.server import Server
from bus.streams import lane_shards
from bus.subjects import EVENTS
from domain.kernel.errors import Refused
from strandline.mending import mend
from strandline.orphans import end_orphans
from strandline.supervisor import Child, Supervisor

CONNECT: Final = "connect.json"
READY_S: Final = 60.0
"""How long everything together may take to come up."""
DELETE_S: Final = 30.0


class InUseError(Exception):
    """Another ``strandline up`` runs in this directory."""


def default_dir() -> Path:
    """``$XDG_STATE_HOME/strandline``, or what that is by default."""
    state = os.environ.get("XDG_STATE_HOME") or Path.home() / ".local" / "state"
    return Path(state) / "strandline"


def runs(directory: Path) -> bool:
    """Whether a ``strandline up`` holds the directory."""
    try:
        with (directory / "lock").open("a") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except FileNotFoundError:
        return False
    except BlockingIOError:
        return True
    return False


@dataclass(frozen=True, slots=True)
class Options:
    """What ``strandline up`` was told. ``port`` 0: the one of last time, else a free one."""

    dir: Path
    port: int = 0
    nodes: int = 1
    driver: str = "auto"


class Installation:
    """Everything on one machine. ``start`` brings it up, ``stop`` drains it; a second start resumes where the first one ended."""

    def __init__(self, options: Options) -> None:
        self.options = options
        self.dir = options.dir
        self.supervisor = Supervisor(self._describe)
        self.connection: Connection | None = None
        self._lock: IO[str] | None = None
        self._server: Server | None = None
        self._mending: asyncio.Task[None] | None = None

    @property
    def node_names(self) -> list[str]:
        """``node-1`` … ``node-n``."""
        return [f"node-{n}" for n in range(1, self.options.nodes + 1)]

    async def start(self) -> str:
        """Start every part and wait until each can be used. Returns the server's URL. Raises ``InUseError``, ``Refused``."""
        self._take_lock()
        await asyncio.to_thread(end_orphans, self.dir)
        authority = await asyncio.to_thread(Authority.load, self.dir / "keys")
        config = authority.server_config(self.dir / "nats" / "jwt")
        self._server = server = Server(self.dir / "nats", port=self.options.port or self._last_port(), config=config)
        self._creds(authority)
        await self.supervisor.start(Child("nats", server.configure(), self.dir / "logs" / "nats.log", stop_s=15))
        self._describe()
        await _listens(server.port)
        self.connection = await connect_from(self.dir, "up", on_closed=lambda: None, timeout=READY_S)
        mending = mend(server.url, self.dir / "keys" / "system.creds", self.dir / "nats", partial(self.supervisor.restart, "nats"))
        self._mending = asyncio.create_task(mending, name="mending the bus")
        await self.supervisor.start(self._child("control", "handlers"))
        await self.supervisor.start(self._child("projector", "projections"))
        caller = Caller(self.connection, actor="up")
        try:
            async with asyncio.timeout(READY_S):
                await self._start_nodes(caller, authority)
        except (TimeoutError, Refused) as error:
            if isinstance(error, Refused) and not error.retryable:
                raise
            raise Refused("installation.not-ready", f"not everything came up: {self._last_words()}") from None
        return server.url

    async def _start_nodes(self, caller: Caller, authority: Authority) -> None:
        await self._enroll(caller, authority)
        for node in self.node_names:
            where = ["--connect", str(self.dir / "nodes" / node)]
            await self.supervisor.start(self._child(node, "agents", "--node", node, "--driver", self.options.driver, *where))
        await self._nodes_ready(caller)

    def _last_words(self) -> str:
        """The last line of the log of whichever part was started again and again, else of the first node's."""
        restless = [child for child in self.supervisor.children.values() if child.starts > 1]
        child = (restless or list(self.supervisor.children.values()))[-1]
        lines = child.log.read_text(errors="replace").strip().splitlines() if child.log.exists() else []
        return f"{child.name}: {lines[-1][:500] if lines else 'it said nothing'}"

    def _take_lock(self) -> None:
        self.dir.mkdir(parents=True, exist_ok=True, mode=0o700)
        self._lock = (self.dir / "lock").open("w")
        try:
            fcntl.flock(self._lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            raise InUseError(f"strandline already runs in {self.dir}") from error

    def _last_port(self) -> int:
        """The port of last time, so that clients which know it find the server again."""
        with contextlib.suppress(OSError, ValueError, KeyError):
            return int(json.loads((self.dir / CONNECT).read_text())["url"].rsplit(":", 1)[1])
        return 0

    def python(self, module: str, *arguments: str) -> list[str]:
        """The command line of one of our modules."""
        return [sys.executable, "-m", module, *arguments]

    def _child(self, name: str, module: str, *arguments: str) -> Child:
        return Child(name, self.python(module, "--dir", str(self.dir), *arguments), self.dir / "logs" / f"{name}.log")

    def _creds(self, authority: Authority) -> None:
        """Credentials for our own processes and whoever owns the directory, and for telling the server of accounts. Made once."""
        wanted: dict[str, Callable[[], str]] = {"admin": partial(authority.control_creds, "admin"), "system": authority.system_creds}
        for name, make in wanted.items():
            path = self.dir / "keys" / f"{name}.creds"
            if not path.exists():
                write_secret(path, make())

    async def _enroll(self, caller: Caller, authority: Authority) -> None:
        """Every node is an account of its own on the bus (docs/adr/0004), and known to the control plane."""
        url = self._server.url if self._server is not None else ""
        system = await connect(url, name="accounts", creds=self.dir / "keys" / "system.creds", on_closed=lambda: None)
        async with system:
            shards = 1 if self.connection is None else await lane_shards(self.connection)
            for node in self.node_names:
                member = authority.node(node, shards=shards)
                await push(system, member)
                creds = self.dir / "nodes" / node / "node.creds"
                write_secret(creds, member.creds)
                write_secret(creds.with_name(CONNECT), json.dumps({"url": url, "creds": str(creds), "inbox_prefix": "_INBOX"}))
                await caller.command("default", "node.enroll", {"node_id": node}, timeout=READY_S)

    async def _nodes_ready(self, caller: Caller) -> None:
        """Until the projector shows every node online."""
        waiting = set(self.node_names)
        while waiting:
            for node in sorted(waiting):
                with contextlib.suppress(Refused):
                    reply = await caller.query("default", "nodes", "get", {"id": node})
                    if reply["items"][0]["status"] != "offline":
                        waiting.discard(node)
            if waiting:
                await asyncio.sleep(0.1)

    def _describe(self) -> None:
        """Write ``connect.json``: complete or not at all, readable by the owner only."""
        if self._server is None:
            return
        pids: dict[str, Any] = {"up": os.getpid(), "nodes": {}}
        for name, child in self.supervisor.children.items():
            if name.startswith("node-"):
                pids["nodes"][name] = child.pid
            else:
                pids[name] = child.pid
        said = {
            "url": self._server.url,
            "creds": str(self.dir / "keys" / "admin.creds"),
            "inbox_prefix": "_INBOX",
            "http": None,
            "pids": pids,
        }
        path = self.dir / CONNECT
        temporary = path.with_suffix(".tmp")
        temporary.touch(mode=0o600)
        temporary.write_text(json.dumps(said, indent=1))
        temporary.replace(path)

    async def stop(self, *, stop_sandboxes: bool = False) -> None:
        """Drain and stop, the ones that depend on others first. Sandboxes go on unless told otherwise."""
        if stop_sandboxes:
            await delete_all(self)
        if self._mending is not None:
            self._mending.cancel()
            await asyncio.gather(self._mending, return_exceptions=True)
        if self.connection is not None:
            await self.connection.close()
        for name in [*self.node_names, "projector", "control", "nats"]:
            await self.supervisor.stop(name)
        if self._lock is not None:
            self._lock.close()


async def _listens(port: int) -> None:
    """Until the server takes connections; a client's own attempts would be logged as errors. Raises ``TimeoutError``."""
    async with asyncio.timeout(READY_S):
        while True:
            try:
                _, writer = await asyncio.open_connection("127.0.0.1", port)
            except OSError:
                await asyncio.sleep(0.02)
            else:
                writer.close()
                return


async def delete_all(installation: Installation) -> None:
    """Tear down every sandbox, as far as the control plane still answers."""
    if installation.connection is not None:
        with contextlib.suppress(Refused):
            caller = Caller(installation.connection, actor="up")
            for project in await _projects(installation.connection):
                await _delete_sandboxes(caller, project)


async def _projects(connection: Connection) -> list[str]:
    """Every project that has had a sandbox, from the subjects of the log (at most 100,000 sandboxes)."""
    info = await call(connection, f"STREAM.INFO.{EVENTS}", {"subjects_filter": "strand.evt.*.sandbox.*"}, within=10)
    return sorted({subject.split(".")[2] for subject in info["state"].get("subjects") or ()})


async def _delete_sandboxes(caller: Caller, project: str) -> None:
    live: list[str] = []
    page: dict[str, Any] = {"limit": 1000}
    while page:
        reply = await caller.query(project, "sandboxes", "list", page)
        live += [item["sandbox_id"] for item in reply["items"] if item["state"] != "DEAD"]
        page = {"limit": 1000, "cursor": reply["next"]} if reply["next"] else {}
    deleted = (caller.command(project, "sandbox.delete", {"sandbox_id": sandbox, "wait_s": DELETE_S}) for sandbox in live)
    await asyncio.gather(*deleted, return_exceptions=True)


def purge(directory: Path) -> bool:
    """Remove every trace of an installation that does not run any more, sandboxes included: each node's agent knows how.

    False: something could not be removed. What says where it is stays then, so that it can be tried again.
    """
    nodes = directory / "nodes"
    clean = True
    for node in sorted(nodes.iterdir()) if nodes.is_dir() else []:
        argv = [sys.executable, "-m", "agents", "--dir", str(directory), "--node", node.name, "--purge"]
        clean &= subprocess.run(argv, check=False, stdin=subprocess.DEVNULL).returncode == 0  # noqa: S603 - our own module
    if clean:
        shutil.rmtree(directory, ignore_errors=True)
    return clean and not directory.exists()
