"""Decompression of layers: gzip, zstd or none, as a stream, bounded, and digested before and after.

Which one is seen from the first bytes, since registries mislabel; the unpacked digest decides what is true.
"""

from __future__ import annotations

import hashlib
import subprocess
import threading
import zlib
from collections.abc import Iterator
from itertools import chain
from typing import Final

from agents.images.blocking import Stop, Stopped
from agents.images.faults import ImageFault
from agents.images.options import MIB, BuildLimits
from agents.images.source import CHUNK, Blob, mismatch
from agents.images.tools import find, tail

_GZIP: Final = b"\x1f\x8b"
_ZSTD: Final = b"\x28\xb5\x2f\xfd"
_RATIO_FROM: Final = 64 * MIB
_ZSTD_WINDOW: Final = 128 * MIB
"""The largest window that compressors use without being asked for more; a frame that wants more is refused."""


class Budget:
    """What one build may still unpack: bytes and entries, over all layers. Raises ``image.too-large``."""

    def __init__(self, limits: BuildLimits) -> None:
        self._limits = limits
        self._bytes = 0
        self._stored = 0
        self._entries = 0

    def unpacked(self, count: int) -> None:
        """``count`` more bytes came out of decompression."""
        self._bytes += count
        self._check(self._bytes)

    def stored(self, count: int) -> None:
        """``count`` more bytes of file content: a sparse file is larger than what it is packed in."""
        self._stored += count
        self._check(self._stored)

    def entry(self) -> None:
        self._entries += 1
        if self._entries > self._limits.max_entries:
            raise ImageFault("image.too-large", f"the image has more than {self._limits.max_entries} entries")

    def ratio(self, packed: int, unpacked: int) -> None:
        if unpacked > _RATIO_FROM and unpacked > packed * self._limits.max_ratio:
            raise ImageFault("image.too-large", f"a layer unpacks to more than {self._limits.max_ratio} times its size")

    def _check(self, count: int) -> None:
        if count > self._limits.max_unpacked_bytes:
            raise ImageFault("image.too-large", f"the image unpacks to more than {self._limits.max_unpacked_bytes} bytes")


class Layer:
    """One layer's bytes, unpacked. Both digests are checked when the stream has been read to its end."""

    def __init__(self, blob: Blob, diff_id: str, budget: Budget, stop: Stop, *, spend: bool = False) -> None:
        """``spend``: this is the last time that the blob is read (:meth:`Blob.chunks`)."""
        self._blob = blob
        self._diff_id = diff_id
        self._budget = budget
        self._stop = stop
        self._spend = spend
        self.packed = 0

    def chunks(self) -> Iterator[bytes]:
        """Raises ``image.digest-mismatch``, ``image.too-large``, ``image.bad-layer``, ``host.missing-tool`` (zstd)."""
        hasher = hashlib.sha256()
        total = 0
        packed = self._packed()
        first = next(packed, b"")
        for chunk in self._decoded(first, chain([first], packed)):
            total += len(chunk)
            self._budget.unpacked(len(chunk))
            self._budget.ratio(self.packed, total)
            hasher.update(chunk)
            yield chunk
        for _ in packed:  # what a decoder left unread is digested as well
            pass
        if f"sha256:{hasher.hexdigest()}" != self._diff_id:
            raise mismatch(self._diff_id)

    def _packed(self) -> Iterator[bytes]:
        for chunk in self._blob.chunks(self._stop, spend=self._spend):
            self.packed += len(chunk)
            yield chunk

    def _decoded(self, first: bytes, packed: Iterator[bytes]) -> Iterator[bytes]:
        if first.startswith(_GZIP):
            return gunzip(packed)
        if first.startswith(_ZSTD):
            return unzstd(packed)
        return packed


def gunzip(packed: Iterator[bytes]) -> Iterator[bytes]:
    """Raises ``image.bad-layer``. Several gzip members one after the other are one stream, as RFC 1952 has it."""
    decoder, rest = zlib.decompressobj(wbits=31), b""
    try:
        for chunk in packed:
            rest += chunk
            while rest:
                if decoder.eof:
                    if not rest.strip(b"\0"):  # padding
                        rest = b""
                        break
                    decoder = zlib.decompressobj(wbits=31)
                yield decoder.decompress(rest, MIB)
                rest = decoder.unused_data if decoder.eof else decoder.unconsumed_tail
    except zlib.error as error:
        raise ImageFault("image.bad-layer", f"a layer's gzip stream is broken: {error}") from error
    if not decoder.eof:
        raise ImageFault("image.bad-layer", "a layer's gzip stream ends early")


def unzstd(packed: Iterator[bytes]) -> Iterator[bytes]:
    """By the ``zstd`` program: Python 3.11 has none. Raises ``host.missing-tool``, ``image.bad-layer``, and what ``packed`` raises."""
    process = subprocess.Popen(  # noqa: S603 - fixed arguments
        [find("zstd"), "-dcq", f"--memory={_ZSTD_WINDOW // MIB}MiB"],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        start_new_session=True,
    )
    assert process.stdin  # noqa: S101 - asked for above
    assert process.stdout  # noqa: S101
    assert process.stderr  # noqa: S101
    stdin = process.stdin
    trouble: list[BaseException] = []

    def feed() -> None:
        try:
            with stdin:
                for chunk in packed:
                    stdin.write(chunk)
        except BrokenPipeError:
            pass  # its exit status says why
        except (ImageFault, Stopped, OSError) as error:
            trouble.append(error)

    feeder = threading.Thread(target=feed, name="zstd-feeder", daemon=True)
    feeder.start()
    try:
        while chunk := process.stdout.read(CHUNK):
            yield chunk
        complaint = process.stderr.read().decode(errors="replace")
        feeder.join()
        if trouble:
            raise trouble[0]
        if process.wait():
            raise ImageFault("image.bad-layer", f"a layer's zstd stream is broken: {tail(complaint)}")
    finally:
        process.kill()
        process.wait()
        feeder.join()
        process.stdout.close()
        process.stderr.close()
