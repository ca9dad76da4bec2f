"""A source that is a registry: the OCI distribution protocol (Docker registry v2), as far as pulling goes."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Final, TypeVar

from agents.images.blocking import Stop
from agents.images.faults import ImageFault, host_fault
from agents.images.manifest import INDEX_TYPES, MANIFEST_TYPES, MAX_MANIFEST, Descriptor
from agents.images.options import Auth, BuildLimits, Trust
from agents.images.reference import RemoteRef
from agents.images.registry_auth import Authorizer
from agents.images.source import CHUNK, Blob, Seen, checked, mismatch
from agents.images.transport import Dropped, Response, Transport

_ACCEPT: Final = ", ".join((*MANIFEST_TYPES, *INDEX_TYPES))
_BUSY: Final = frozenset({408, 429, 500, 502, 503, 504})
_PROGRESS: Final = 1024 * 1024
"""Bytes that must have come for the count of failures to begin anew: a long download may break often, if it moves."""
_MAX_DELAY_S: Final = 10.0

T = TypeVar("T")


class Registry:
    """One repository. May be used by several threads."""

    def __init__(self, ref: RemoteRef, auth: Auth | None, trust: Trust, limits: BuildLimits, stop: Stop) -> None:
        self._ref = ref
        self._limits = limits
        self._stop = stop
        self._http = Transport(trust, limits.timeout_s, stop)
        self._auth = Authorizer(self._http, auth, ref.repository)
        self._base = ""

    def root(self) -> tuple[bytes, str]:
        if self._ref.digest:
            return self.manifest(self._ref.digest), ""
        return self._manifest(self._ref.tag)

    def manifest(self, digest: str) -> bytes:
        return checked(self._manifest(digest)[0], digest)

    def fetch(self, blob: Descriptor, folder: Path, seen: Seen) -> Blob:
        """Download into ``folder``; an interrupted download goes on where it stopped. A failed one leaves no file."""
        path = folder / blob.digest.removeprefix("sha256:")
        try:
            _Download(blob, path, seen).run(self)
        except OSError as error:
            path.unlink(missing_ok=True)
            raise host_fault(error, "storing a layer") from error
        except BaseException:
            path.unlink(missing_ok=True)
            raise
        return Blob(path, 0, blob.size, blob.digest, temporary=True)

    def _manifest(self, which: str) -> tuple[bytes, str]:
        def get() -> tuple[bytes, str]:
            with self.open(f"manifests/{which}", {"Accept": _ACCEPT}) as response:
                media_type = (response.headers.get("Content-Type") or "").split(";")[0].strip()
                return response.read_all(MAX_MANIFEST), media_type

        return self.persist(get)

    def persist(self, attempt: Callable[[], T], moved: Callable[[], int] = lambda: 0) -> T:
        """Call until it succeeds, at most ``attempts`` times without progress; ``moved`` says how many bytes have come."""
        failures, mark = 0, moved()
        while True:
            try:
                return attempt()
            except Dropped as error:
                fault = ImageFault("image.unreachable", f"registry {error}", retryable=True)
                delay = self._limits.retry_delay_s * 2**failures
            except _Busy as busy:
                code = "image.rate-limited" if busy.status == 429 else "image.registry-error"
                fault = ImageFault(code, f"registry {self._ref.host} answers {busy.status}", retryable=True)
                delay = busy.delay_s or self._limits.retry_delay_s * 2**failures
            if moved() - mark >= _PROGRESS:
                failures, mark = 0, moved()
            failures += 1
            if failures >= self._limits.attempts:
                raise fault
            self._stop.wait(min(delay, _MAX_DELAY_S))

    @contextmanager
    def open(self, what: str, headers: dict[str, str]) -> Iterator[Response]:
        """GET below the repository, authorised if need be. Raises ``Dropped`` and ``_Busy`` besides faults."""
        if not self._base:
            self._base = f"{self._http.scheme(self._ref.host)}://{self._ref.host}/v2/{self._ref.repository}"
        url = f"{self._base}/{what}"
        for last in (False, True):
            used = self._auth.header()
            with self._http.get(url, {**headers, **used}) as response:
                if response.status != 401 or last:
                    self._judge(response, what)
                    yield response
                    return
                challenges = response.headers.get_all("WWW-Authenticate") or []
            self._auth.answer(challenges, used, url)

    def _judge(self, response: Response, what: str) -> None:
        status = response.status
        if status in {200, 206}:
            return
        if status in {401, 403}:
            # registries say this of what does not exist as well, so as not to tell
            raise ImageFault("image.unauthorized", f"{self._ref.host}/{self._ref.repository}: no such image, or no right to it ({status})")
        if status == 404:
            raise ImageFault("image.not-found", f"{self._ref.host}/{self._ref.repository} has no {what.replace('/', ' ', 1)}")
        if status in _BUSY:
            raise _Busy(status, response.headers.get("Retry-After") or "")
        raise ImageFault("image.registry-error", f"registry {self._ref.host} answers {status} for {what}")


class _Busy(Exception):  # noqa: N818 - the registry asks for patience
    def __init__(self, status: int, retry_after: str) -> None:
        super().__init__(status)
        self.status = status
        self.delay_s = float(retry_after) if retry_after.isascii() and retry_after.isdigit() else 0.0


class _Download:
    """One blob on its way into a file: what has come, and its digest so far."""

    def __init__(self, blob: Descriptor, path: Path, seen: Seen) -> None:
        self._blob = blob
        self._path = path
        self._seen = seen
        self._done = 0
        self._hasher = hashlib.sha256()

    def run(self, registry: Registry) -> None:
        with self._path.open("xb", buffering=0) as file:

            def once() -> None:
                headers = {"Range": f"bytes={self._done}-"} if self._done else {}
                with registry.open(f"blobs/{self._blob.digest}", headers) as response:
                    if self._done and not self._resumes(response):
                        self._restart()
                        file.seek(0)
                        file.truncate()
                    self._read(response, file.write)
                if self._done < self._blob.size:
                    raise Dropped("the connection ended early")

            registry.persist(once, lambda: self._done)
        if f"sha256:{self._hasher.hexdigest()}" != self._blob.digest:
            raise mismatch(self._blob.digest)

    def _read(self, response: Response, write: Callable[[bytes], int | None]) -> None:
        while chunk := response.read(CHUNK):
            if self._done + len(chunk) > self._blob.size:
                raise mismatch(self._blob.digest)
            write(chunk)
            self._hasher.update(chunk)
            self._done += len(chunk)
            self._seen(len(chunk))

    def _resumes(self, response: Response) -> bool:
        return response.status == 206 and (response.headers.get("Content-Range") or "").startswith(f"bytes {self._done}-")

    def _restart(self) -> None:
        """The registry does not resume: everything comes again."""
        self._seen(-self._done)
        self._done = 0
        self._hasher = hashlib.sha256()
