"""The node's own key, with which it opens the secrets that were sealed to it. Made at the first start; leaves the node never."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Final, Self

import structlog

from bus import sealed

log = structlog.get_logger(__name__)

FILE: Final = "sealing.key"
_BYTES: Final = 32


class SealingKey:
    """``public`` is what the node says of it in its hello; see ``bus/sealed.py``."""

    def __init__(self, node: str, private: bytes) -> None:
        self._node = node
        self._private = private
        self.public = sealed.public_key(private)

    @classmethod
    def of(cls, directory: Path, node: str) -> Self:
        """The key in ``directory``, which only one agent works in; a new one if there is none, or none that is whole."""
        path = directory / FILE
        private = path.read_bytes() if path.exists() else b""
        if len(private) != _BYTES:
            log.info("sealing.new-key", node=node)
            private = sealed.private_key()
            _write(path, private)
        return cls(node, private)

    def open(self, text: str, purpose: str) -> str:
        """The secret in ``text``. Raises ``registry.secret-unreadable``."""
        return sealed.unseal(text, self._node, self._private, purpose)


def _write(path: Path, private: bytes) -> None:
    """Whole or not at all, and never readable by anybody else."""
    new = path.with_suffix(".new")
    new.unlink(missing_ok=True)
    with os.fdopen(os.open(new, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "wb") as file:
        file.write(private)
        file.flush()
        os.fsync(file.fileno())
    new.replace(path)
