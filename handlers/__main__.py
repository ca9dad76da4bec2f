"""``python -m handlers``: one control-plane process, until SIGTERM."""

from __future__ import annotations

import argparse
import asyncio
import signal
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass
from pathlib import Path

import structlog
import uvloop

from bus import metrics
from bus.connection import connect_from
from bus.garbage import look_rarely
from bus.logging import configure
from bus.streams import Settings, ensure_streams
from bus.tracing import Tracing
from domain import catalogue
from handlers import downloads
from handlers.plane import ControlPlane

log = structlog.get_logger(__name__)


@dataclass(frozen=True, slots=True)
class Ports:
    """What is served on ports of 127.0.0.1 beside the bus; None: not at all. ``artifacts_url``, ``identity_url``: where callers reach
    these, if elsewhere.
    """

    metrics: int | None = None
    artifacts: int | None = None
    artifacts_url: str | None = None
    identity: int | None = None
    identity_url: str | None = None


async def run(directory: Path, settings: Settings, name: str, ports: Ports) -> None:
    """Connect, make sure that the streams are there, serve until told to stop."""
    stopping = asyncio.Event()
    for number in (signal.SIGINT, signal.SIGTERM):
        asyncio.get_running_loop().add_signal_handler(number, stopping.set)
    connection = await connect_from(directory, "control", timeout=None)
    async with connection:
        await ensure_streams(connection, settings=settings)
        tracing = Tracing.configured("strandline-control")
        plane = await ControlPlane.open(connection, keys=directory / "keys", name=name, measured=ports.metrics is not None, spans=tracing)
        served = AsyncExitStack()
        await served.enter_async_context(serving(plane, ports, directory / "keys"))
        life, stop = asyncio.create_task(plane.live()), asyncio.create_task(stopping.wait())
        try:
            await asyncio.wait({life, stop}, return_when=asyncio.FIRST_COMPLETED)
            if life.done():
                life.result()
        finally:
            for task in (life, stop):
                task.cancel()
            await asyncio.gather(life, stop, return_exceptions=True)
            log.info("control.stopping")
            await served.aclose()
            await plane.close()
            if tracing is not None:
                await asyncio.to_thread(tracing.close)


@asynccontextmanager
async def serving(plane: ControlPlane, ports: Ports, keys: Path) -> AsyncIterator[None]:
    """Metrics and artifacts while the block runs, as far as they were asked for. Raises ``OSError`` when a port is taken."""
    async with AsyncExitStack() as stack:
        if plane.metrics is not None and ports.metrics is not None:
            await stack.enter_async_context(metrics.serving(plane.metrics, ports.metrics))
        if ports.artifacts is not None:
            await stack.enter_async_context(downloads.serving(plane.control, ports.artifacts, keys, ports.artifacts_url))
        if ports.identity is not None:
            from handlers.identity import serving as identity  # noqa: PLC0415 - costs memory, and is off unless asked for

            await stack.enter_async_context(identity.serving(plane.control, ports.identity, keys, ports.identity_url))
        yield


def main() -> None:
    """Parse the command line and run."""
    parser = argparse.ArgumentParser(prog="python -m handlers", description=__doc__)
    parser.add_argument("--dir", type=Path, required=True, help="data directory with connect.json")
    parser.add_argument("--replicas", type=int, default=1, choices=(1, 3), help="replicas of every stream")
    parser.add_argument("--shards", type=int, choices=range(1, 257), metavar="N", help="streams for the lanes of a new installation")
    parser.add_argument("--name", default="control", help="tells control planes of one cluster apart")
    parser.add_argument("--metrics-port", type=int, metavar="PORT", help="serve Prometheus metrics on this port of 127.0.0.1")
    parser.add_argument("--artifacts-port", type=int, metavar="PORT", help="serve artifacts over HTTP on this port of 127.0.0.1")
    parser.add_argument("--artifacts-url", metavar="URL", help="where callers reach that port, if not there")
    parser.add_argument("--identity-port", type=int, metavar="PORT", help="issue tokens for sandboxes; the issuer's documents on this port")
    parser.add_argument("--identity-url", metavar="URL", help="where verifiers reach that port, if not there; the issuer in every token")
    arguments = parser.parse_args()
    configure()
    catalogue.load()
    look_rarely()
    artifacts, identity = (arguments.artifacts_port, arguments.artifacts_url), (arguments.identity_port, arguments.identity_url)
    ports = Ports(arguments.metrics_port, *artifacts, *identity)
    uvloop.run(run(arguments.dir, Settings(replicas=arguments.replicas, shards=arguments.shards), arguments.name, ports))


if __name__ == "__main__":
    main()
