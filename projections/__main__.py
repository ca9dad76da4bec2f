"""``python -m projections``: one projector process, until SIGTERM."""

from __future__ import annotations

import argparse
import asyncio
import signal
from contextlib import AsyncExitStack
from pathlib import Path

import structlog
import uvloop

from bus.connection import connect_from
from bus.garbage import look_rarely
from bus.logging import configure
from bus.metrics import serving
from bus.tracing import Tracing
from domain import catalogue
from projections.buslog import BusLog
from projections.metrics import metrics
from projections.projector import Projector
from projections.settings import open_store, store_url
from projections.views import VIEWS

log = structlog.get_logger(__name__)


async def run(directory: Path, url: str, metrics_port: int | None = None) -> None:
    """Connect, bring the views up to date and serve until told to stop."""
    stopping = asyncio.Event()
    for number in (signal.SIGINT, signal.SIGTERM):
        asyncio.get_running_loop().add_signal_handler(number, stopping.set)
    store, tracing = open_store(url), Tracing.configured("strandline-projector")
    connection = await connect_from(directory, "projector", timeout=None)
    async with connection, Projector(connection, store, BusLog(connection), VIEWS, tracing) as projector, AsyncExitStack() as more:
        if metrics_port is not None:
            await more.enter_async_context(serving(metrics(projector.states), metrics_port))
        log.info("projector.serving")
        await stopping.wait()
        log.info("projector.stopping")
    store.close()
    if tracing is not None:
        await asyncio.to_thread(tracing.close)


def main() -> None:
    """Parse the command line and run."""
    parser = argparse.ArgumentParser(prog="python -m projections", description=__doc__)
    parser.add_argument("--dir", type=Path, required=True, help="data directory with connect.json")
    parser.add_argument("--views", help="sqlite:<path> or postgresql://…; default: STRAND_VIEWS, else views.db in the data directory")
    parser.add_argument("--metrics-port", type=int, metavar="PORT", help="serve Prometheus metrics on this port of 127.0.0.1")
    arguments = parser.parse_args()
    configure()
    catalogue.load()
    look_rarely()
    uvloop.run(run(arguments.dir, arguments.views or store_url(arguments.dir), arguments.metrics_port))


if __name__ == "__main__":
    main()
