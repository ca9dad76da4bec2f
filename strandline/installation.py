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
from collections.abc import Callable, Coroutine
from functools import partial
from pathlib import Path
from typing import IO, Any, Final

from bus.accounts import Authority, push, write_secret
from bus.client import Caller
from bus.connection import Connection, connect, connect_from
from bus.requests import call
from bus.server import Server, ServerError
from bus.streams import lane_shards
from bus.subjects import EVENTS
from domain.kernel.errors import Refused
from strandline.mending import mend
from strandline.options import Options
from strandline.orphans import end_orphans
from strandline.ports import PortTakenError, listens, taken
from strandline.supervisor import Child, Supervisor

CONNECT: Final = "connect.json"
READY_S: Final = 60.0
"""How long everything together may take to come up."""
DELETE_S: Final = 30.0
_PORT_ATTEMPTS: Final = 5


class InUseError(Exception):
    """Another ``strandline up`` runs in this directory."""


class HostError(Exception):
    """A part cannot work on this host, and starting it again changes nothing. The message is what it said, with what mends it."""

    def __init__(self, child: Child) -> None:
        super().__init__(f"{child.name} cannot work on this host: {child.said()}")


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


class Installation:
    """Everything on one machine. ``start`` brings it up, ``stop`` drains it; a second start resumes where the first one ended."""

    def __init__(self, options: Options, tell: Callable[[str], None] = lambda _: None) -> None:
        """``tell`` gets what a person should know although nothing failed."""
        self.options = options
        self._say = tell
        self.dir = options.dir
        self.driver = options.driver
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
        """Start every part and wait until each can be used. Returns the server's URL.

        Raises ``InUseError``, ``PortTakenError``, ``ServerError``, ``HostError``, ``Refused``.
        """
        self._take_lock()
        await asyncio.to_thread(end_orphans, self.dir)
        self._ports_free()
        authority = await asyncio.to_thread(Authority.load, self.dir / "keys")
        self._creds(authority)
        server = await self._start_bus(authority)
        self.connection = await connect_from(self.dir, "up", on_closed=lambda: None, timeout=READY_S)
        mending = mend(server.url, self.dir / "keys" / "system.creds", self.dir / "nats", partial(self.supervisor.restart, "nats"))
        self._mending = asyncio.create_task(mending, name="mending the bus")
        await self.supervisor.start(self._child("control", "handlers", *self.options.for_control()))
        await self.supervisor.start(self._child("projector", "projections", *self.options.metrics(1)))
        caller = Caller(self.connection, actor="up")
        try:
            async with asyncio.timeout(READY_S):
                await self._unless_given_up(self._start_nodes(caller, authority))
        except (TimeoutError, Refused) as error:
            if isinstance(error, Refused) and not error.retryable:
                raise
            raise Refused("installation.not-ready", f"not everything came up: {self._last_words()}") from None
        return server.url

    async def _start_bus(self, authority: Authority) -> Server:
        """On the port that was asked for, else on the one of last time, else on a free one. Raises ``PortTakenError``, ``ServerError``."""
        config = authority.server_config(self.dir / "nats" / "jwt")
        port = self._port()
        for _ in range(_PORT_ATTEMPTS):
            self._server = server = Server(self.dir / "nats", port=port, config=config)
            child = Child("nats", server.configure(), self.dir / "logs" / "nats.log", stop_s=15)
            await self.supervisor.start(child)
            if await _comes_up(child, server.port):
                return server
            await self.supervisor.stop(child.name)
            if self.options.port:
                raise PortTakenError(f"port {port} of 127.0.0.1 is taken by another process")
            port = 0
        raise ServerError(f"no free port in {_PORT_ATTEMPTS} attempts")

    def _ports_free(self) -> None:
        """Raises ``PortTakenError``: a part that finds its port taken would be started again and again."""
        for port in self.options.served():
            if taken(port):
                raise PortTakenError(f"port {port} of 127.0.0.1 is taken by another process")

    def _port(self) -> int:
        """Asked for, or of last time if nobody else has it by now; 0: any. Raises ``PortTakenError``."""
        asked, last = self.options.port, self._last_port()
        if asked and taken(asked):
            raise PortTakenError(f"port {asked} of 127.0.0.1 is taken by another process")
        if not asked and last and taken(last):
            self._say(f"port {last}, where the bus was last time, is taken by another process; it takes another one")
            return 0
        return asked or last

    async def _unless_given_up(self, work: Coroutine[Any, Any, None]) -> None:
        """Do it, unless meanwhile a part says that it cannot work here. Raises ``HostError``."""
        working, gave_up = asyncio.create_task(work), asyncio.create_task(self.supervisor.gave_up())
        try:
            await asyncio.wait({working, gave_up}, return_when=asyncio.FIRST_COMPLETED)
            if not working.done():
                raise HostError(gave_up.result())
            await working
        finally:
            working.cancel()
            gave_up.cancel()
            await asyncio.gather(working, gave_up, return_exceptions=True)

    async def _start_nodes(self, caller: Caller, authority: Authority) -> None:
        await self._enroll(caller, authority)
        for place, node in enumerate(self.node_names, start=2):
            where = ["--connect", str(self.dir / "nodes" / node)]
            told = [*self.options.for_agents(), *self.options.metrics(place)]
            await self.supervisor.start(self._child(node, "agents", "--node", node, *told, *where))
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
        pids: dict[str, Any] = {"up": os.getpid() if self.supervisor.children else None, "nodes": {}}
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
        with contextlib.suppress(OSError):
            self._describe()  # no pid of it is ours any more
        if self._lock is not None:
            self._lock.close()


async def _comes_up(child: Child, port: int) -> bool:
    """Until the server takes connections; False: somebody else has its port. Raises ``TimeoutError``."""
    async with asyncio.timeout(READY_S):
        while True:
            pid = child.pid
            if pid is not None and listens(pid, port):
                return True
            if pid is None and taken(port):
                return False
            await asyncio.sleep(0.02)


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
