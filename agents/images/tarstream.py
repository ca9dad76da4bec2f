"""Tar archives, member by member, without trusting them: headers bounded in size, the end of the archive a real end.

The standard library parses the headers (ustar, pax, GNU long names and sparse files). It would keep every member, read a header of any
size that it announces, and take a broken header for the end; here neither happens.
"""

from __future__ import annotations

import tarfile
from collections.abc import Iterator
from typing import IO, Any, Final, cast

from agents.images.faults import ImageFault

_MAX_HEADER: Final = 1024 * 1024
"""Bytes that one member's headers may have: pax records, long names, sparse maps."""
_BLOCK: Final = 512
_TROUBLE: Final = (tarfile.TarError, ValueError, OverflowError, RecursionError, IndexError, KeyError)


class Window:
    """A forward-only file over an iterator of chunks. What is skipped is not kept."""

    def __init__(self, chunks: Iterator[bytes]) -> None:
        self._chunks = chunks
        self._buffer = memoryview(b"")
        self._position = 0
        self._allowed: int | None = None
        self.last = b""

    def read(self, size: int = -1) -> bytes:
        """``size`` bytes, fewer only at the end."""
        if self._allowed is not None:
            self._allowed -= size
            if size < 0 or self._allowed < 0:
                raise ImageFault("image.too-large", f"a tar header has more than {_MAX_HEADER} bytes")
        parts = list(self._take(size))
        self.last = parts[0] if len(parts) == 1 else b"".join(parts)
        return self.last

    def tell(self) -> int:
        return self._position

    def seek(self, position: int) -> None:
        """Forward only: tar is read in order."""
        if position < self._position:
            raise tarfile.ReadError("the archive points backwards")
        for _ in self._take(position - self._position):
            pass

    def drain(self) -> None:
        """Read what follows the archive's end, so that the bytes are digested to the last."""
        while self._buffer or self._fill():
            self._position += len(self._buffer)
            self._buffer = memoryview(b"")

    def header(self, *, begins: bool) -> None:
        """From here on until the next call, reads are of one member's headers and bounded, or of data and not."""
        self._allowed = _MAX_HEADER if begins else None

    def _take(self, size: int) -> Iterator[bytes]:
        while size > 0 and (self._buffer or self._fill()):
            part = self._buffer[:size]
            self._buffer = self._buffer[len(part) :]
            self._position += len(part)
            size -= len(part)
            yield bytes(part)

    def _fill(self) -> bool:
        for chunk in self._chunks:
            if chunk:
                self._buffer = memoryview(chunk)
                return True
        return False


def members(window: Window) -> Iterator[tuple[tarfile.TarFile, tarfile.TarInfo]]:
    """Each member, in order; its data is to be read before the next is asked for. Raises ``image.bad-layer``, ``image.too-large``."""
    tar: tarfile.TarFile | None = None
    while True:
        window.header(begins=True)
        try:
            if tar is None:
                tar = tarfile.open(fileobj=cast("IO[bytes]", window), mode="r:", encoding="utf-8", errors="surrogateescape")  # noqa: SIM115 - owns nothing
            member = tar.next()
        except _TROUBLE as error:
            if tar is None and not window.last:
                return  # an empty stream: an archive without members, as some builders write for empty layers
            raise ImageFault("image.bad-layer", f"the tar archive is broken: {error}") from error
        window.header(begins=False)
        if member is None:
            break
        forget(tar)
        yield tar, member
    if window.last.strip(b"\0"):  # a header that is no header ends the library's loop silently
        raise ImageFault("image.bad-layer", f"the tar archive is broken at byte {window.tell() - _BLOCK}")


def forget(tar: tarfile.TarFile) -> None:
    """Make the library forget the members it has read: it keeps them all, for random access that nobody wants."""
    cast("Any", tar).members.clear()


def data(tar: tarfile.TarFile, member: tarfile.TarInfo, window: Window, size: int) -> Iterator[bytes]:
    """A regular member's content in chunks of at most ``size`` bytes. Raises ``image.bad-layer`` when it ends early."""
    left = member.size
    try:
        if member.issparse():
            reader = cast("IO[bytes]", tar.extractfile(member))
        else:
            window.seek(member.offset_data)
            reader = cast("IO[bytes]", window)
        while left and (chunk := reader.read(min(size, left))):
            left -= len(chunk)
            yield chunk
    except _TROUBLE as error:
        raise ImageFault("image.bad-layer", f"the tar archive is broken: {error}") from error
    if left:
        raise ImageFault("image.bad-layer", f"{member.name[:200]!r} ends {left} bytes early")
