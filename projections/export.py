"""The canonical bytes of a view: what "a rebuilt view equals the live one" is measured by, and what a backup of a view would be.

One line per item, ascending by key: ``[kind, project, id, item]`` as canonical JSON (sorted names, no spaces). Position and generation are
not part of it: they say how far a view is, not what it is.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator

from domain.kernel.command import canonical
from projections.store import Reader


def lines(reader: Reader) -> Iterator[bytes]:
    """Everything in a generation."""
    for key, item in reader.dump():
        yield canonical([*key, item]) + b"\n"


def dump(reader: Reader) -> bytes:
    """All of it at once, for small views."""
    return b"".join(lines(reader))


def digest(reader: Reader) -> str:
    """SHA-256 of the dump, in hex, in bounded memory."""
    sha = hashlib.sha256()
    for line in lines(reader):
        sha.update(line)
    return sha.hexdigest()
