"""A whole installation in a temporary directory, as ``strandline up`` runs it, for benchmarks that go through every process."""

from __future__ import annotations

import asyncio
import tempfile
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

from agents.images.compose import compose
from bus.client import Caller
from strandline.installation import Installation, delete_all, purge
from strandline.options import Options

ALIAS = "bench"
WAIT_S = 60


@asynccontextmanager
async def installed(driver: str) -> AsyncIterator[tuple[Installation, Caller]]:
    """One node with that driver; nothing is left afterwards."""
    with tempfile.TemporaryDirectory(prefix="strandline-bench-", ignore_cleanup_errors=True) as directory:
        installation = Installation(Options(dir=Path(directory) / "data", driver=driver))
        try:
            await installation.start()
            assert installation.connection is not None
            yield installation, Caller(installation.connection)
        finally:
            await delete_all(installation)
            await installation.stop()
            await asyncio.to_thread(purge, installation.dir)


async def template(installation: Installation, caller: Caller, *, size: tuple[float, int] = (0.1, 64)) -> None:
    """Make the template ``ALIAS`` from this host's own shell and tools, and wait until it is ready. ``size``: processors and MiB."""
    composed = await asyncio.to_thread(compose, installation.dir / "image")
    cmd, (cpu, memory_mb) = ["/bin/sleep", "1000000"], size
    body = {"image": composed.reference, "alias": ALIAS, "cmd": cmd, "memory_mb": memory_mb, "cpu": cpu, "wait_s": WAIT_S}
    reply = await caller.command("default", "template.create", body)
    assert reply["result"]["status"] == "READY", reply
