"""What a sandbox serves: its listening ports, and what is wrong where they are not those declared (reference/miren-sandbox.md §6.5)."""

from __future__ import annotations

from collections.abc import Collection, Iterable
from dataclasses import dataclass

from agents.drivers.driver import CanTellListeners, CanWatchPorts, Handle, RuntimeFault
from domain.nodes.orders import PortStatus


@dataclass(frozen=True, slots=True)
class Heard:
    """``served``: ports that can be reached; ``hidden``: those that only the sandbox itself reaches."""

    served: frozenset[int] = frozenset()
    hidden: frozenset[int] = frozenset()


async def hear(driver: CanWatchPorts, handle: Handle, address: str) -> Heard:
    """Nothing once it has ended; whoever waits for its exit says that better.

    Without an ``address`` there is nothing but loopback, so what listens there is served as well as it can be.
    """
    try:
        if not address or not isinstance(driver, CanTellListeners):
            return Heard(await driver.listening(handle))
        found = await driver.listeners(handle)
    except RuntimeFault as fault:
        if fault.code != "sandbox.not-running":
            raise
        return Heard()
    served = frozenset(listener.port for listener in found if listener.reachable)
    return Heard(served, frozenset(listener.port for listener in found) - served)


def diagnosis(heard: Heard, port: int) -> str:
    """Why a port is not served, and what to do; empty when nothing at all listens."""
    if port in heard.hidden:
        return "it listens on the loopback interface only, let it bind to 0.0.0.0"
    if heard.served:
        return f"it listens on {_words(heard.served)}; let it heed $PORT, or declare one of these"
    if heard.hidden:
        return f"it listens on {_words(heard.hidden)}, and on the loopback interface only: let it bind to 0.0.0.0:{port}"
    return ""


def statuses(ports: Iterable[PortStatus], served: Collection[int]) -> tuple[PortStatus, ...]:
    """The same ports as they are now. One that has listened once is closed when it does not."""
    return tuple(port.model_copy(update={"status": _status(port, served)}) for port in ports)


def _status(port: PortStatus, served: Collection[int]) -> str:
    if port.port in served or port.bound in served:
        return "listening"
    return "declared" if port.status == "declared" else "closed"


def _words(ports: Collection[int]) -> str:
    return ", ".join(map(str, sorted(ports)))
