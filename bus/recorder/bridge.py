"""From threads to the event loop: one background loop and one connection per server, shared by every recorder of a process."""

from __future__ import annotations

import asyncio
import ssl
import threading
from collections.abc import Coroutine
from concurrent.futures import Future
from typing import Any, ClassVar, TypeVar

import uvloop

from bus.connection import Connection, connect
from bus.requests import Publisher

T = TypeVar("T")


class Bridge:
    """An event loop in a daemon thread, with a connection. ``call`` waits for a coroutine, ``start`` does not."""

    _shared: ClassVar[dict[tuple[str, str | None, str | None], Bridge]] = {}
    _sharing: ClassVar[threading.Lock] = threading.Lock()

    def __init__(self, url: str, creds: str | None, ca: str | None) -> None:
        self.loop = uvloop.new_event_loop()
        threading.Thread(target=self.loop.run_forever, name="jetstream recorder", daemon=True).start()
        tls = ssl.create_default_context(cafile=ca) if ca else None
        self.nc: Connection = self.call(connect(url, name="recorder", creds=creds, on_closed=lambda: None, tls=tls))
        self.publisher = Publisher(self.nc)

    @classmethod
    def to(cls, url: str, creds: str | None = None, ca: str | None = None) -> Bridge:
        """The bridge to that server; made at the first call. ``ca``: the certificates that it is to be believed by, a file."""
        with cls._sharing:
            key = (url, creds, ca)
            if key not in cls._shared:
                cls._shared[key] = cls(url, creds, ca)
            return cls._shared[key]

    @classmethod
    def close_all(cls) -> None:
        """End every connection of this process, for orderly shutdowns."""
        with cls._sharing:
            for bridge in cls._shared.values():
                bridge.call(bridge.nc.close())
                bridge.loop.call_soon_threadsafe(bridge.loop.stop)
            cls._shared.clear()

    def call(self, work: Coroutine[Any, Any, T]) -> T:
        """The result of ``work``, or what it raises. Never from the loop's own thread."""
        return self.start(work).result()

    def start(self, work: Coroutine[Any, Any, T]) -> Future[T]:
        """Run ``work`` on the loop."""
        return asyncio.run_coroutine_threadsafe(work, self.loop)
