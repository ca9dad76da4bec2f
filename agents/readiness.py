"""When a started sandbox is up: its probe port listens, or it has none. Its exit beats its port (reference/miren-sandbox.md §6.5)."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Awaitable
from typing import Final

from agents.drivers.driver import CanWatchPorts, Condition, Driver, Exit, Handle, RuntimeFault
from agents.failures import FailedError, fail
from domain.nodes.orders import PortStatus
from domain.sandboxes.spec import Recipe

FIRST_LOOK_S: Final = 0.01
LOOK_S: Final = 0.25
"""Looks begin quickly and slow down to this."""
LAST_LOOKS_S: Final = 1.0
"""What is left of a wait when an agent takes it up too late: the port may have been open all the time."""
CANNOT_RUN: Final = frozenset({126, 127})
"""Exit codes by which a main process was never one: not executable, not found."""


async def wait_ready(driver: Driver, handle: Handle, port: int | None, address: str, seconds: float, waited: float = 0) -> None:
    """Return when it is up. Raises ``sandbox.startup-failed``, or ``driver.unsupported`` when nobody here could see the port.

    ``waited``: so many of the ``seconds`` are over, by an agent that died meanwhile; time for a few looks is always left.
    """
    seen = await driver.inspect(handle)
    if seen.condition is Condition.EXITED and seen.exit is not None and (port is not None or seen.exit.code in CANNOT_RUN):
        raise _exited(seen.exit)
    if seen.condition is Condition.GONE:
        raise fail("sandbox.startup-failed", "it vanished while it started")
    if port is None:
        return
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
            raise await _never_listened(driver, handle, port, seconds)
        opened.result()
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
        return port in await _listening(driver, handle)
    return await _connects(asyncio.open_connection(address, port))


async def _listening(driver: CanWatchPorts, handle: Handle) -> frozenset[int]:
    """None once it has ended; whoever waits for its exit says that better."""
    try:
        return await driver.listening(handle)
    except RuntimeFault as fault:
        if fault.code != "sandbox.not-running":
            raise
        return frozenset()


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


async def _never_listened(driver: Driver, handle: Handle, port: int, seconds: float) -> FailedError:
    """The failure, with what listens instead, if that can be seen."""
    others = sorted(await _listening(driver, handle)) if isinstance(driver, CanWatchPorts) else []
    instead = f"; it listens on {', '.join(map(str, others))}" if others else ""
    return fail("sandbox.startup-failed", f"nothing listens on port {port} after {seconds:g} s{instead}", port=port, listening=others)


async def port_statuses(driver: Driver, handle: Handle, recipe: Recipe, address: str) -> tuple[PortStatus, ...]:
    """Every port of the recipe, and whether something listens on it, as far as that can be seen."""
    probed = () if recipe.probe_port is None else (recipe.probe_port,)
    wanted = dict.fromkeys([*recipe.ports, *probed])
    listening = await _listening(driver, handle) if wanted and isinstance(driver, CanWatchPorts) else frozenset()
    known = {*listening, *probed}
    return tuple(PortStatus(port=port, address=address, status="listening" if port in known else "declared") for port in wanted)
