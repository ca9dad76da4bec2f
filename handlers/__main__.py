"""``python -m handlers``: one control-plane process, until SIGTERM."""

from __future__ import annotations

import argparse
import asyncio
import signal
from contextlib import AsyncExitStack
from pathlib import Path

import structlog
import uvloop

from bus.connection import connect_from
from bus.logging import configure
from bus.metrics import serving
from bus.streams import Settings, ensure_streams
from bus.tracing import Tracing
from domain import catalogue
from handlers.plane import ControlPlane

log = structlog.get_logger(__name__)


async def run(directory: Path, settings: Settings, name: str, metrics_port: int | None = None) -> None:
    """Connect, make sure that the streams are there, serve until told to stop."""
    stopping = asyncio.Event()
    for number in (signal.SIGINT, signal.SIGTERM):
        asyncio.get_running_loop().add_signal_handler(number, stopping.set)
    connection = await connect_from(directory, "control", timeout=None)
    async with connection:
        await ensure_streams(connection, settings=settings)
        tracing = Tracing.configured("strandline-control")
        plane = await ControlPlane.open(connection, keys=directory / "keys", name=name, measured=metrics_port is not None, spans=tracing)
        metrics = AsyncExitStack()
        if plane.metrics is not None and metrics_port is not None:
            await metrics.enter_async_context(serving(plane.metrics, metrics_port))
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
            await metrics.aclose()
            await plane.close()
            if tracing is not None:
                await asyncio.to_thread(tracing.close)


def main() -> None:
    """Parse the command line and run."""
    parser = argparse.ArgumentParser(prog="python -m handlers", description=__doc__)
    parser.add_argument("--dir", type=Path, required=True, help="data directory with connect.json")
    parser.add_argument("--replicas", type=int, default=1, choices=(1, 3), help="replicas of every stream")
    parser.add_argument("--shards", type=int, choices=range(1, 257), metavar="N", help="streams for the lanes of a new installation")
    parser.add_argument("--name", default="control", help="tells control planes of one cluster apart")
    parser.add_argument("--metrics-port", type=int, metavar="PORT", help="serve Prometheus metrics on this port of 127.0.0.1")
    arguments = parser.parse_args()
    configure()
    catalogue.load()
    uvloop.run(run(arguments.dir, Settings(replicas=arguments.replicas, shards=arguments.shards), arguments.name, arguments.metrics_port))


if __name__ == "__main__":
    main()
