"""nftables by the library that the ``nft`` program itself is made of: a change takes 0.3 ms, by the program 3 (reference/runtimes.md §8).

libnftables comes with Debian's package ``nftables``. Each call is one transaction: all of it holds afterwards, or nothing does.
"""

from __future__ import annotations

import ctypes
import threading
from typing import Any, Final

from agents.drivers.driver import RuntimeFault

_LIBRARY: Final = "libnftables.so.1"
_TEXTS: Final = ("nft_ctx_get_output_buffer", "nft_ctx_get_error_buffer")


def available() -> bool:
    """Whether the library is on this host."""
    try:
        ctypes.CDLL(_LIBRARY)
    except OSError:
        return False
    return True


class Nft:
    """A conversation with the kernel's packet filter, in the network namespace of whoever makes it. Threads may share it."""

    def __init__(self) -> None:
        try:
            self._library = _declared(ctypes.CDLL(_LIBRARY))
        except OSError as error:
            raise RuntimeFault("network.no-nft", f"{_LIBRARY} is not installed (apt-get install nftables)") from error
        self._context = self._library.nft_ctx_new(0)
        self._library.nft_ctx_buffer_output(self._context)
        self._library.nft_ctx_buffer_error(self._context)
        self._lock = threading.Lock()

    def run(self, text: str) -> str:
        """Do what the text says and return what that prints. Raises ``network.rules-refused``, with nothing changed."""
        with self._lock:
            code = self._library.nft_run_cmd_from_buffer(self._context, text.encode())
            printed, complaint = (getattr(self._library, name)(self._context).decode(errors="replace") for name in _TEXTS)
        if code != 0:
            raise RuntimeFault("network.rules-refused", complaint.strip()[:2000])
        return str(printed)


def _declared(library: Any) -> Any:
    """Pointers are wider than what ctypes takes for granted."""
    library.nft_ctx_new.restype, library.nft_ctx_new.argtypes = ctypes.c_void_p, [ctypes.c_uint32]
    library.nft_run_cmd_from_buffer.argtypes = [ctypes.c_void_p, ctypes.c_char_p]
    for name in ("nft_ctx_buffer_output", "nft_ctx_buffer_error"):
        getattr(library, name).argtypes = [ctypes.c_void_p]
    for name in _TEXTS:
        getattr(library, name).argtypes, getattr(library, name).restype = [ctypes.c_void_p], ctypes.c_char_p
    return library
