"""``python -m agents --dir DIR --node NAME``: the composition root of a node's process. docs: ``agents/options.py``."""

from __future__ import annotations

import asyncio
import os
import signal
import sys

import structlog
import uvloop

from agents.agent import Agent
from agents.drivers import hostns
from agents.host.reaper import become_subreaper
from agents.options import Options, parse
from agents.ownership import InUseError
from agents.purge import purge
from agents.registry import NoDriverError
from bus.garbage import look_rarely
from bus.logging import configure

log = structlog.get_logger(__name__)

EXIT_NO_DRIVER = 78
"""EX_CONFIG: starting it again changes nothing until somebody mends the host."""
EXIT_IN_USE = 73
SYSTEM_PATH = "/usr/local/sbin:/usr/sbin:/sbin"


async def _run(options: Options) -> int:
    agent = Agent(options)
    loop, stopping = asyncio.get_running_loop(), asyncio.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, stopping.set)
    starting = asyncio.create_task(agent.start())
    stop = asyncio.create_task(stopping.wait())
    await asyncio.wait({starting, stop}, return_when=asyncio.FIRST_COMPLETED)
    if not starting.done():
        starting.cancel()
    try:
        await asyncio.gather(starting, return_exceptions=stopping.is_set())
        hellos: set[asyncio.Future[asyncio.Task[None]]] = set()
        loop.add_signal_handler(signal.SIGHUP, lambda: hellos.add(asyncio.ensure_future(agent.say_hello())))
        await stop
    finally:
        stop.cancel()
    await agent.close()
    return 0


def main() -> int:
    """0: ended when told to; 78: no driver works here; 73: another agent has this directory."""
    options = parse()
    configure()
    look_rarely()
    # an ordinary user's PATH lacks the folders where Debian keeps mke2fs, nft and their like
    os.environ["PATH"] = f"{os.environ.get('PATH', os.defpath)}:{SYSTEM_PATH}"
    try:
        if options.purge:
            uvloop.run(purge(options))
            return 0
        if options.driver != "sim":
            hostns.enter(options.own)  # before there are threads
            become_subreaper()
        return uvloop.run(_run(options))
    except NoDriverError as error:
        print(error, file=sys.stderr)  # noqa: T201 - for a person
        return EXIT_NO_DRIVER
    except InUseError as error:
        print(error, file=sys.stderr)  # noqa: T201
        return EXIT_IN_USE


if __name__ == "__main__":
    sys.exit(main())
