"""A network for each sandbox: a namespace of its own, a veth pair to the node's bridge, an address that is leased to it.

Names and subnet follow from the data directory, so that several agents share a host; sandboxes reach neither each other nor the node, and
the world only when ``egress`` is asked for, as far as their policies let them. A few networks are made while nobody waits for one: making
one takes 2 ms.
"""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from ipaddress import IPv4Address, IPv4Interface, IPv4Network
from pathlib import Path
from typing import Final

from agents.drivers.driver import RuntimeFault
from agents.host import spawn
from agents.host.finishing import to_its_end
from agents.network import firewall, namespaces, nft
from agents.network.ledger import Ledger, is_spare, new_spare
from agents.network.rtnetlink import Route
from domain.sandboxes.egress import EgressPolicy

_POOL: Final = IPv4Network("100.64.0.0/10")
"""Shared address space (RFC 6598): in nobody's home or office. Cut into /22s, as many addresses as a bridge has ports."""

_PREFIX: Final = 22
_INSIDE: Final = "eth0"
_SPARES: Final = 2
"""Networks in stock: as many as there are starts at a time on a small node."""
_QUIET_S: Final = 0.05
"""The stock is filled up when no sandbox has asked for so long: whoever waits comes first."""


@dataclass(frozen=True, slots=True)
class Attachment:
    """``netns`` is None and the rest empty where a sandbox has no network of the node's making.

    ``interface``: the address with its prefix's length.
    """

    netns: Path | None = None
    address: str = ""
    interface: str = ""
    gateway: str = ""


class NoNetwork:
    """For users and hosts that may not make networks: drivers give each sandbox an empty one."""

    lets_out = False

    async def attach(self, sandbox_id: str, egress: EgressPolicy | None = None) -> Attachment:  # noqa: ARG002  # the port's
        _refuse_way_out(egress)
        return Attachment()

    async def give(self, held: str, sandbox_id: str) -> None: ...

    async def detach(self, sandbox_id: str) -> None: ...

    async def list(self) -> Mapping[str, str]:
        return {}

    async def setup(self) -> None: ...

    async def teardown(self) -> None: ...

    async def stock(self) -> None:
        await asyncio.Event().wait()


class BridgeNetwork:
    """``directory`` is its own. ``isolate``: sandboxes cannot reach each other; ``egress``: they reach the world as the node."""

    def __init__(self, directory: Path, *, egress: bool = False, isolate: bool = True) -> None:
        self._directory = directory.absolute()
        self._namespaces = self._directory / "netns"
        self._namespaces.mkdir(parents=True, exist_ok=True, mode=0o700)
        self._mark = hashlib.sha256(str(self._directory.resolve()).encode()).hexdigest()
        self.bridge = f"slb{self._mark[:8]}"
        self.table = f"strandline_{self._mark[:8]}"
        self.lets_out, self._isolate = egress, isolate
        self.resolves = False
        """Whether somebody answers questions for names on the bridge, and lets ``learn`` know."""
        self._firewall = firewall.Firewall(self.table, self.bridge, egress=egress)
        self._ledger = Ledger(self._directory / "leases.jsonl")
        self._lock = asyncio.Lock()
        self._asked = asyncio.Event()

    def _link(self, name: str) -> str:
        """Of a sandbox or a spare; at most 15 characters, whatever the name."""
        return f"sl{self._mark[:4]}{hashlib.sha256(self._ledger.made_as(name).encode()).hexdigest()[:9]}"

    def _path(self, name: str) -> Path:
        return self._namespaces / self._ledger.made_as(name)

    async def setup(self) -> None:
        async with self._lock:
            subnet = self._ledger.subnet
            if subnet is None:
                subnet = await self._free_subnet()
                self._ledger.choose(subnet)
            await asyncio.to_thread(self._make_bridge)
            await asyncio.to_thread(self._remove_half_made)
            policies = self._ledger.policies if self.lets_out else {}
            await asyncio.to_thread(self._firewall.install, subnet, policies)
            if self.lets_out:
                await asyncio.to_thread(Path("/proc/sys/net/ipv4/ip_forward").write_text, "1", encoding="ascii")

    async def _free_subnet(self) -> IPv4Network:
        """The one that the directory's name points at, or the next that no route of this host overlaps."""
        done = await spawn.run(["ip", "-4", "route", "show", "table", "all"])
        known = [network for line in done.stdout.decode().splitlines() if (network := _destination(line)) is not None]
        count = 1 << (_PREFIX - _POOL.prefixlen)
        for step in range(count):
            offset = (int(self._mark[:8], 16) + step) % count
            subnet = IPv4Network((int(_POOL.network_address) + (offset << (32 - _PREFIX)), _PREFIX))
            if not any(subnet.overlaps(network) for network in known):
                return subnet
        raise RuntimeFault("network.no-subnet", f"every /{_PREFIX} of {_POOL} is in use on this host")

    def _make_bridge(self) -> None:
        with Route() as route:
            if route.index(self.bridge) is None:
                route.add_bridge(self.bridge)
                index = self._bridge_index(route)
                route.add_address(index, self._interface(self._ledger.gateway))
            route.up(self._bridge_index(route))

    def _bridge_index(self, route: Route) -> int:
        index = route.index(self.bridge)
        if index is None:
            raise RuntimeFault("network.not-set-up", f"there is no bridge {self.bridge}", retryable=True)
        return index

    def _interface(self, address: object) -> IPv4Interface:
        return IPv4Interface(f"{address}/{_PREFIX}")

    @property
    def gateway(self) -> IPv4Address:
        """The node's own address on the bridge."""
        return self._ledger.gateway

    def address(self, sandbox_id: str) -> IPv4Address | None:
        return self._ledger.leases.get(sandbox_id)

    def owner(self, address: IPv4Address) -> str | None:
        """Whose address it is now."""
        return next((name for name, leased in self._ledger.sandboxes.items() if leased == address), None)

    def learn(self, address: IPv4Address, host: str, answers: Sequence[IPv4Address], seconds: int) -> None:
        """What a name was answered with may be reached from an address, if its policy allows that name."""
        if self.lets_out and (policy := self._ledger.policies.get(address)) is not None:
            self._firewall.learn(address, policy, host, answers, seconds)

    async def attach(self, sandbox_id: str, egress: EgressPolicy | None = None) -> Attachment:
        """``egress`` holds when this returns: before anything runs there."""
        _check(sandbox_id)
        if not self.lets_out:
            _refuse_way_out(egress)
        if egress is not None and not self.resolves and any(destination.domain for destination in egress.allowed):
            raise RuntimeFault("sandbox.unsupported", "egress by domain needs a name server on the node's bridge, and it has none")
        self._asked.set()
        async with self._lock:
            if sandbox_id not in self._ledger.leases and (spares := self._ledger.spares):
                self._ledger.give(spares[0], sandbox_id)
            attachment = await self._made(sandbox_id)
            if egress is not None and self.lets_out:
                self._ledger.set_policy(sandbox_id, egress)  # first: whoever takes over has to know what may be there
                await to_its_end(asyncio.to_thread(self._firewall.put_up, self._ledger.leases[sandbox_id], egress))
            return attachment

    async def give(self, held: str, sandbox_id: str) -> None:
        _check(sandbox_id)
        async with self._lock:
            if held in self._ledger.leases and sandbox_id not in self._ledger.leases:
                self._ledger.give(held, sandbox_id)

    async def _made(self, name: str) -> Attachment:
        address = self._ledger.lease(name)
        try:
            if not self._is_whole(name):
                await to_its_end(asyncio.to_thread(self._make, name))
        except OSError as error:
            raise RuntimeFault("network.attach-failed", f"{name}: {error}", retryable=True) from error
        return Attachment(self._path(name), str(address), str(self._interface(address)), str(self._ledger.gateway))

    def _make(self, name: str) -> None:
        link, path = self._link(name), self._path(name)
        with Route() as host:
            self._clear(host, name)
            with namespaces.create(path) as (namespace, inside):
                host.add_veth(link, self._bridge_index(host), _INSIDE, namespace)
                if self._isolate and (port := host.index(link)) is not None:
                    host.isolate(port)
                index = inside.index(_INSIDE)
                if index is None:
                    raise OSError(f"{_INSIDE} did not appear in the namespace of {name}")
                inside.add_address(index, self._interface(self._ledger.leases[name]))
                inside.up(index)
                inside.add_default_route(index, self._ledger.gateway)
        self._ledger.set_ready(name)

    def _is_whole(self, name: str) -> bool:
        """Asked each time: the kernel's part of it may be gone."""
        if not self._ledger.is_ready(name) or not namespaces.exists(self._path(name)):
            return False
        with Route() as host:
            return host.index(self._link(name)) is not None

    def _clear(self, host: Route, name: str) -> None:
        """The link first: it does not go with a namespace that some process still keeps alive."""
        index = host.index(self._link(name))
        if index is not None:
            host.delete(index)
        namespaces.remove(self._path(name))

    async def detach(self, sandbox_id: str) -> None:
        _check(sandbox_id)
        async with self._lock:
            await to_its_end(asyncio.to_thread(self._remove, sandbox_id))

    def _remove(self, name: str) -> None:
        address = self._ledger.leases.get(name)
        with Route() as host:
            self._clear(host, name)
            if address is not None and (bridge := host.index(self.bridge)) is not None:
                host.forget_neighbour(bridge, address)
        if address is not None and (policy := self._ledger.policies.get(address)) is not None:
            self._firewall.take_down(address, policy)
        self._ledger.release(name)

    async def list(self) -> Mapping[str, str]:
        """Of sandboxes. Also namespaces without a lease: what a crash between the two has left."""
        leased = {sandbox_id: str(address) for sandbox_id, address in self._ledger.sandboxes.items()}
        given = {self._ledger.made_as(sandbox_id) for sandbox_id in leased}
        found = (path.name for path in self._namespaces.iterdir())
        return dict.fromkeys((name for name in found if name not in given and not is_spare(name)), "") | leased

    async def stock(self) -> None:
        """Keep some in stock, until cancelled: then they are removed."""
        try:
            while True:
                self._asked.clear()
                await asyncio.sleep(_QUIET_S)
                if not self._asked.is_set():
                    await self._fill_up()
                    await self._asked.wait()
        finally:
            async with self._lock:
                for spare in self._ledger.spares:
                    await asyncio.to_thread(self._remove, spare)

    async def _fill_up(self) -> None:
        """What makes it impossible is told to whoever attaches, if it is still so then."""
        with contextlib.suppress(RuntimeFault):
            while len(self._ledger.spares) < _SPARES and not self._asked.is_set():
                async with self._lock:
                    await self._made(new_spare())

    def _remove_half_made(self) -> None:
        """Spares that an agent which died was about to make, or that the machine has lost since."""
        found = {path.name for path in self._namespaces.iterdir()} | set(self._ledger.leases)
        given = {self._ledger.made_as(sandbox_id) for sandbox_id in self._ledger.sandboxes}
        for name in found - given:
            if is_spare(name) and not self._is_whole(name):
                self._remove(name)

    async def teardown(self) -> None:
        """Remove everything that this network has made on the host."""
        async with self._lock:
            for name in {*await self.list(), *self._ledger.leases}:
                await asyncio.to_thread(self._remove, name)
            await asyncio.to_thread(self._firewall.remove)
            await asyncio.to_thread(self._remove_bridge)

    def _remove_bridge(self) -> None:
        with Route() as route:
            if (index := route.index(self.bridge)) is not None:
                route.delete(index)


def _refuse_way_out(egress: EgressPolicy | None) -> None:
    """Raises ``sandbox.unsupported`` for a policy that lets out where nothing gets out; one that does not is kept by itself."""
    if egress is not None and egress.lets_out:
        raise RuntimeFault("sandbox.unsupported", "sandboxes do not get out of this node: it was started without --egress, or not as root")


def _check(sandbox_id: str) -> None:
    if "/" in sandbox_id or sandbox_id.startswith("."):
        raise RuntimeFault("sandbox.invalid-id", f"{sandbox_id!r} is no sandbox id")


def choose_network(directory: Path, *, egress: bool = False) -> BridgeNetwork | NoNetwork:
    """Tried, not guessed: root in a container often may not make bridges."""
    if os.geteuid() != 0 or not nft.available():
        return NoNetwork()
    probe = f"slp{os.getpid() % 10**8}"
    try:
        with Route() as route:
            route.add_bridge(probe)
            route.delete(route.index(probe) or 0)
    except OSError:
        return NoNetwork()
    return BridgeNetwork(directory, egress=egress)


def _destination(line: str) -> IPv4Network | None:
    """The network of a line of ``ip route``, None for default routes and those of other kinds."""
    words = line.split()
    for word in words[:2]:
        try:
            return IPv4Network(word, strict=False)
        except ValueError:
            continue
    return None
