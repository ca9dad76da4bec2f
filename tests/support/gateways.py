"""A TLS gateway in front of a real registry that misbehaves as told: it cuts, redirects, dawdles, lies. It remembers what it was asked."""

from __future__ import annotations

import threading
from collections.abc import Callable
from contextlib import closing, suppress
from dataclasses import dataclass
from http.client import HTTPConnection
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any, Self

from support.images import Pki


@dataclass(frozen=True)
class Asked:
    path: str
    headers: dict[str, str]


class Request(BaseHTTPRequestHandler):
    """One GET. ``behave`` answers it, usually with ``forward``."""

    server: Any

    def do_GET(self) -> None:
        gateway: Gateway = self.server.gateway
        with gateway.lock:
            gateway.asked.append(Asked(self.path, {name.lower(): value for name, value in self.headers.items()}))
        self.close_connection = True
        with suppress(OSError):
            gateway.behave(self)

    def upstream(self, *, ranges: bool = True) -> tuple[int, dict[str, str], bytes]:
        """The real registry's answer: status, headers, body."""
        headers = {name: value for name, value in self.headers.items() if name.lower() != "host" and (ranges or name.lower() != "range")}
        with closing(HTTPConnection(self.server.gateway.upstream, timeout=20)) as connection:
            connection.request("GET", self.path, headers=headers)
            answer = connection.getresponse()
            return answer.status, dict(answer.headers), answer.read()

    def forward(self, *, cut: int | None = None, ranges: bool = True, change: Callable[[bytes], bytes] = bytes) -> None:
        """Pass the real answer on; only the first ``cut`` bytes of its body, though it promises all."""
        status, headers, body = self.upstream(ranges=ranges)
        body = change(body)
        self.answer(status, body[:cut], {**headers, "Content-Length": str(len(body))})

    def answer(self, status: int, body: bytes = b"", headers: dict[str, str] | None = None) -> None:
        self.send_response(status)
        for name, value in {"Content-Length": str(len(body)), **(headers or {})}.items():
            self.send_header(name, value)
        self.end_headers()
        self.wfile.write(body)

    @property
    def of_a_blob(self) -> bool:
        return "/blobs/" in self.path

    def log_message(self, *_: Any) -> None:
        pass


class Gateway:
    """Listens on a loopback port; ``host`` is what a reference names."""

    def __init__(self, upstream: str, pki: Pki, behave: Callable[[Request], None] = Request.forward) -> None:
        self.upstream = upstream
        self.behave = behave
        self.asked: list[Asked] = []
        self.lock = threading.Lock()
        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Request)
        self._server.daemon_threads = True
        self._server.socket = pki.context().wrap_socket(self._server.socket, server_side=True, do_handshake_on_connect=False)
        self._server.handle_error = lambda *_: None  # type: ignore[method-assign]  # clients break off on purpose
        self._server.gateway = self  # type: ignore[attr-defined]  # how a request finds us
        self.host = f"127.0.0.1:{self._server.server_address[1]}"
        self._thread = threading.Thread(target=self._server.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True)

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._server.shutdown()
        self._thread.join()
        self._server.server_close()

    def blobs(self) -> list[Asked]:
        return [asked for asked in self.asked if "/blobs/" in asked.path]
