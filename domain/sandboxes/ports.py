"""What is known of a sandbox's declared ports. Pure."""

from __future__ import annotations

from collections.abc import Iterable

from domain.kernel.errors import Refused
from domain.nodes.orders import PortStatus
from domain.sandboxes.spec import Recipe

Ports = tuple[PortStatus, ...]


def after(known: Ports, seen: Ports) -> Ports:
    """The known ports as a node sees them now. What it says of others counts for nothing: those were never declared."""
    by_port = {port.port: port for port in seen}
    return tuple(by_port[port.port].after(port) if port.port in by_port else port for port in known)


def unserved(known: Ports) -> Ports:
    """The known ports when nothing runs that could serve them."""
    return tuple(port.model_copy(update={"status": "declared"}).after(port) for port in known)


def declared(recipe: Recipe) -> Iterable[int]:
    """The ports that it is to serve, without repeats."""
    return dict.fromkeys([*recipe.ports, *(() if recipe.probe_port is None else (recipe.probe_port,))])


def require(known: Ports, recipe: Recipe, port: int) -> PortStatus:
    """How it stands with a declared port, also before anybody has looked. Raises ``sandbox.no-port``."""
    found = {status.port: status for status in known} or {number: PortStatus(port=number) for number in declared(recipe)}
    if port not in found:
        raise Refused("sandbox.no-port", f"the sandbox has not declared port {port}", details={"ports": sorted(found)})
    return found[port]
