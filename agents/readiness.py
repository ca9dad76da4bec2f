"""When a started sandbox is up: its probe port listens, or it has none. Its exit beats its port (reference/miren-sandbox.md §6.5)."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Awaitable
from typing import Final

from agents.drivers.driver import CanWatchPorts, Condition, Driver, Exit, Handle
from agents.failures import FailedError, fail
from agents.listening import Heard, diagnosis, hear, statuses
from domain.nodes.orders import PortStatus
from domain.sandboxes.ports import declared as declared_ports
from domain.sandboxes.spec import Recipe

FIRST_LOOK_S: Final = 0.01
LOOK_S: Final = 0.25
"""Looks begin quickly and slow down to this."""
LAST_LOOKS_S: Final = 1.0
"""What is left of a wait when an agent takes it up too late: the port may have been open all the time."""
CANNOT_RUN: Final = frozenset({126, 127})
"""Exit codes by which a main process was never one: not executable, not found."""


async def wait_ready(driver: Driver, handle: Handle, port: int | None, address: str, seconds: float, waited: float = 0) -> int | None:
    """Return when it is up, with the port that is served instead of the one that was asked for, if it is another one.

    ``waited``: so many of the ``seconds`` are over, by an agent that died meanwhile; time for a few looks is always left.
    Raises ``sandbox.startup-failed``, or ``driver.unsupported`` when nobody here could see the port.
    """
    seen = await driver.inspect(handle)
    if seen.condition is Condition.EXITED and seen.exit is not None and (port is not None or seen.exit.code in CANNOT_RUN):
        raise _exited(seen.exit)
    if seen.condition is Condition.GONE:
        raise fail("sandbox.startup-failed", "it vanished while it started")
    if port is None:
        return None
    if not address and not isinstance(driver, CanWatchPorts):
        raise fail("driver.unsupported", f"driver {driver.name} cannot see whether port {port} listens", driver=driver.name)
    exit_ = asyncio.ensure_future(driver.wait(handle))
    opened = asyncio.ensure_future(_until_open(driver, handle, port, address))
    try:
        left = max(min(seconds, LAST_LOOKS_S), seconds - waited)
        await asyncio.wait({exit_, opened}, timeout=left, return_when=asyncio.FIRST_COMPLETED)
        if exit_.done():
            raise _exited(exit_.result())
        if not opened.done():
            return await _instead(driver, handle, port, address, seconds)
        opened.result()
        return None
    finally:
        exit_.cancel()
        opened.cancel()
        await asyncio.gather(exit_, opened, return_exceptions=True)


async def _until_open(driver: Driver, handle: Handle, port: int, address: str) -> None:
    pause = FIRST_LOOK_S
    while not await _is_open(driver, handle, port, address):
        await asyncio.sleep(pause)
        pause = min(pause * 1.5, LOOK_S)


async def _is_open(driver: Driver, handle: Handle, port: int, address: str) -> bool:
    if isinstance(driver, CanWatchPorts):
        return port in (await hear(driver, handle, address)).served
    return await _connects(asyncio.open_connection(address, port))


async def _connects(attempt: Awaitable[tuple[asyncio.StreamReader, asyncio.StreamWriter]]) -> bool:
    try:
        async with asyncio.timeout(1):
            _, writer = await attempt
    except (OSError, TimeoutError):
        return False
    writer.close()
    with contextlib.suppress(OSError):
        await writer.wait_closed()
    return True


def _exited(exit_: Exit) -> FailedError:
    return fail("sandbox.startup-failed", f"it exited with code {exit_.code} before it was up", exit_code=exit_.code)


async def _instead(driver: Driver, handle: Handle, port: int, address: str, seconds: float) -> int | None:
    """Time is up. The one other port that is served, or None when it is the right one after all; else the failure, with its diagnosis."""
    heard = await hear(driver, handle, address) if isinstance(driver, CanWatchPorts) else Heard()
    if port in heard.served:  # in this very moment
        return None
    if len(heard.served) == 1:
        return next(iter(heard.served))
    why = diagnosis(heard, port)
    message = f"nothing listens on port {port} after {seconds:g} s{why and f': {why}'}"
    raise fail("sandbox.startup-failed", message, port=port, listening=sorted(heard.served), loopback=sorted(heard.hidden))


async def port_statuses(driver: Driver, handle: Handle, recipe: Recipe, address: str, bound: int | None = None) -> tuple[PortStatus, ...]:
    """Every port of the recipe, and whether something listens on it, as far as that can be seen.

    ``bound``: what ``wait_ready`` returned.
    """
    declared = [PortStatus(port=port, address=address) for port in declared_ports(recipe)]
    if bound is not None:
        declared = [port.model_copy(update={"bound": bound}) if port.port == recipe.probe_port else port for port in declared]
    heard = await hear(driver, handle, address) if declared and isinstance(driver, CanWatchPorts) else Heard()
    known = {port for port in (bound or recipe.probe_port,) if port is not None}
    return statuses(declared, heard.served | known)
