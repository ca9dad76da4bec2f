"""HTTP to registries: one GET at a time, redirects followed by our rules, broken open when the work is stopped.

Rules: TLS always, verified, except with hosts that may speak plain HTTP (``Trust``). A redirect never leads from TLS to plain text, and
never carries the ``Authorization`` header to another origin (blobs are commonly served by a storage host that must not see it).
"""

from __future__ import annotations

import http.client
import ipaddress
import socket
import ssl
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, closing, contextmanager
from functools import lru_cache
from pathlib import Path
from typing import Final
from urllib.parse import SplitResult, urljoin, urlsplit
from urllib.request import getproxies, proxy_bypass

from agents.images.blocking import Stop
from agents.images.faults import ImageFault
from agents.images.options import Trust

_MAX_REDIRECTS: Final = 5
_MOVED: Final = frozenset({301, 302, 303, 307, 308})
_AGENT: Final = "strandline"


class Dropped(Exception):  # noqa: N818 - a condition the caller retries, not yet a fault
    """The connection could not be made, or broke: the same request may succeed."""


class Response:
    """A status, headers, and a body read in pieces."""

    def __init__(self, raw: http.client.HTTPResponse, stop: Stop) -> None:
        self._raw = raw
        self._stop = stop
        self.status = raw.status
        self.headers = raw.headers

    def read(self, size: int) -> bytes:
        """Up to ``size`` bytes, b"" at the end. Raises ``Dropped``, ``Stopped``."""
        try:
            data = self._raw.read(size)
        except (OSError, http.client.HTTPException) as error:
            self._stop.check()
            raise Dropped(str(error)) from error
        self._stop.check()
        return data

    def read_all(self, limit: int) -> bytes:
        """The whole body. Raises ``image.too-large`` beyond ``limit`` bytes."""
        data = b""
        while chunk := self.read(64 * 1024):
            data += chunk
            if len(data) > limit:
                raise ImageFault("image.too-large", f"the registry's answer has more than {limit} bytes")
        return data


class Transport:
    """Makes requests as ``Trust`` allows."""

    def __init__(self, trust: Trust, timeout_s: float, stop: Stop) -> None:
        self._trust = trust
        self._timeout_s = timeout_s
        self._stop = stop
        try:
            self._tls = _verifying(*_authorities(trust.ca_file))
        except (OSError, ssl.SSLError) as error:
            raise ImageFault("image.untrusted-registry", f"the CA file {trust.ca_file} cannot be used: {error}") from error

    def may_be_plain(self, host: str) -> bool:
        """Whether ``host[:port]`` may be spoken to without TLS."""
        name = urlsplit(f"//{host}").hostname or ""
        return host in self._trust.plain_http or is_loopback(name)

    def scheme(self, host: str) -> str:
        """``https``, or ``http`` for a host that may speak it and knows no TLS. Certificate trouble is no reason to go without."""
        if not self.may_be_plain(host):
            return "https"
        try:
            with self.get(f"https://{host}/v2/", {}):
                return "https"
        except Dropped as error:
            if isinstance(error.__cause__, ssl.SSLError):
                return "http"
            raise

    @contextmanager
    def get(self, url: str, headers: Mapping[str, str]) -> Iterator[Response]:
        """Raises ``Dropped``, ``image.untrusted-registry``, ``image.insecure``, ``Stopped``; a status of 4xx or 5xx is an answer."""
        at, sent = _split(url), dict(headers)
        for _ in range(_MAX_REDIRECTS + 1):
            with ExitStack() as open_now:
                response = open_now.enter_context(self._once(at, sent))
                location = response.headers.get("Location")
                if response.status not in _MOVED or not location:
                    yield response
                    return
                following = _split(at.geturl(), location)
            if _origin(following) != _origin(at):
                sent.pop("Authorization", None)
            if (at.scheme, following.scheme) == ("https", "http"):
                raise ImageFault("image.insecure", f"{at.hostname} redirects to plain HTTP")
            at = following
        raise ImageFault("image.registry-error", f"{at.hostname} redirects without end")

    @contextmanager
    def _once(self, at: SplitResult, headers: Mapping[str, str]) -> Iterator[Response]:
        connection = self._connection(at)
        try:
            try:
                connection.connect()
                sock = connection.sock
                with self._stop.breaking(lambda: sock.shutdown(socket.SHUT_RDWR)):
                    target = (at.path or "/") + (f"?{at.query}" if at.query else "")
                    connection.request("GET", target, headers={"User-Agent": _AGENT, "Accept-Encoding": "identity", **headers})
                    raw = connection.getresponse()
            except ssl.SSLCertVerificationError as error:
                raise ImageFault("image.untrusted-registry", f"{at.hostname}: {error.verify_message}") from error
            except (OSError, http.client.HTTPException) as error:
                self._stop.check()
                raise Dropped(f"{at.hostname}: {error or type(error).__name__}") from error
            # the response keeps the socket open, also after its connection was closed
            with closing(raw), self._stop.breaking(lambda: sock.shutdown(socket.SHUT_RDWR)):
                yield Response(raw, self._stop)
        finally:
            connection.close()

    def _connection(self, at: SplitResult) -> http.client.HTTPConnection:
        host, port = at.hostname or "", at.port
        if at.scheme == "http" and self.may_be_plain(at.netloc):
            return http.client.HTTPConnection(host, port, timeout=self._timeout_s)
        if at.scheme != "https":
            raise ImageFault("image.insecure", f"{at.netloc} would be spoken to in plain text")
        proxy = None if is_loopback(host) or proxy_bypass(host) else getproxies().get("https")
        if not proxy:
            return http.client.HTTPSConnection(host, port, timeout=self._timeout_s, context=self._tls)
        via = urlsplit(proxy if "//" in proxy else f"//{proxy}")
        tunnel = http.client.HTTPSConnection(via.hostname or "", via.port or 3128, timeout=self._timeout_s, context=self._tls)
        tunnel.set_tunnel(host, port or 443)
        return tunnel


def _authorities(ca_file: Path | None) -> tuple[Path | None, tuple[tuple[str, int, int], ...]]:
    """``ca_file``, and what says whether it or the system's own authorities are other ones than before. Raises ``OSError``."""
    system = ssl.get_default_verify_paths()
    files = [Path(path) for path in (system.cafile, system.capath, ca_file) if path]
    found = [(str(path), path.stat()) for path in files]
    return ca_file, tuple((path, stat.st_mtime_ns, stat.st_ino) for path, stat in found)


@lru_cache(maxsize=4)
def _verifying(ca_file: Path | None, _as_they_are: tuple[tuple[str, int, int], ...]) -> ssl.SSLContext:
    """A context that believes the system's authorities and ``ca_file``. Reading the system's takes some 30 ms, so it is done once."""
    context = ssl.create_default_context()
    if ca_file:
        context.load_verify_locations(ca_file)
    return context


def is_loopback(name: str) -> bool:
    try:
        return ipaddress.ip_address(name).is_loopback
    except ValueError:
        return name == "localhost"


def _split(base: str, location: str = "") -> SplitResult:
    """Where a request goes, or a redirect from it. Raises ``image.registry-error`` for what is no URL."""
    try:
        url = urlsplit(urljoin(base, location))
        _ = url.port  # looked at here, because looking raises
    except ValueError as error:
        raise ImageFault("image.registry-error", f"{(location or base)[:200]!r} is no URL: {error}") from error
    return url


def _origin(url: SplitResult) -> tuple[str, str | None, int | None]:
    return url.scheme, url.hostname, url.port
