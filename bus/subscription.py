"""Following the log: :class:`Tail` with a position of one's own, :class:`DurableReader` with one that the server keeps."""

from __future__ import annotations

from bus.durable import DurableReader
from bus.tail import Tail

__all__ = ["DurableReader", "Tail"]
