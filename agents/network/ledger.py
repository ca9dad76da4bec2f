"""Who has which address: a file of JSON lines, each written before it is acted upon. The same sandbox keeps the same address.

Only the subnet waits for the disk: everything that has an address ends with the machine, and the next one begins with none of it.

Addresses are given out in turn, not lowest first, and rest when they are given back: one that a sandbox just had may still be in somebody's
cache. Only when all others are taken the one that has rested longest is given early (reference/miren-sandbox.md §4.2).

A network may be made before anybody needs it: then it is leased to a spare's name, and given to a sandbox later, name and all.
"""

from __future__ import annotations

import json
import os
import secrets
import time
from collections import OrderedDict
from collections.abc import Callable, Mapping
from ipaddress import IPv4Address, IPv4Network
from pathlib import Path
from typing import Any, Final

from agents.drivers.driver import RuntimeFault
from domain.sandboxes.egress import EgressPolicy

REST_S: Final = 30 * 60.0
"""How long an address rests (reference/miren-sandbox.md §4.2)."""
_SPARE: Final = ".spare-"
"""No sandbox's id begins like that."""


class Ledger:
    """``subnet``'s first host address is the gateway's. A new ``subnet`` for an old file is refused by the caller, who asks ``load``."""

    def __init__(self, path: Path, clock: Callable[[], float] = time.time) -> None:
        self._path = path
        self._clock = clock
        self._leases: dict[str, IPv4Address] = {}
        self._ready: set[str] = set()
        self._made_as: dict[str, str] = {}
        self._policies: dict[str, EgressPolicy] = {}
        self._resting: OrderedDict[int, float] = OrderedDict()
        """Addresses by when they were given back, the earliest first."""
        self._last = 0
        self.subnet: IPv4Network | None = None
        self._load()

    @property
    def leases(self) -> Mapping[str, IPv4Address]:
        """By sandbox, or by spare."""
        return self._leases

    @property
    def sandboxes(self) -> Mapping[str, IPv4Address]:
        return {name: address for name, address in self._leases.items() if not is_spare(name)}

    @property
    def spares(self) -> list[str]:
        """Those that nothing is missing of."""
        return [name for name in self._leases if is_spare(name) and name in self._ready]

    def made_as(self, sandbox_id: str) -> str:
        """Under which name its network was made: its own, or that of the spare that it was given."""
        return self._made_as.get(sandbox_id, sandbox_id)

    @property
    def policies(self) -> Mapping[IPv4Address, EgressPolicy]:
        """What holds for the addresses of sandboxes that have an egress policy of their own."""
        return {self._leases[name]: policy for name, policy in self._policies.items()}

    def set_policy(self, sandbox_id: str, policy: EgressPolicy) -> None:
        """Of one that has an address; it goes with that."""
        self._append({"policy": policy.model_dump(mode="json"), "for": sandbox_id})

    def give(self, spare: str, sandbox_id: str) -> None:
        """What is leased to one name, a spare's or another, is the sandbox's from now on, with its address."""
        self._append({"given": spare, "to": sandbox_id})

    @property
    def gateway(self) -> IPv4Address:
        return self._network()[1]

    def _network(self) -> IPv4Network:
        if self.subnet is None:
            raise RuntimeFault("network.not-set-up", "the node's network has not been set up")
        return self.subnet

    def choose(self, subnet: IPv4Network) -> None:
        self._append({"subnet": str(subnet)})

    def lease(self, sandbox_id: str) -> IPv4Address:
        """Raises ``network.no-address`` when all are taken."""
        if (known := self._leases.get(sandbox_id)) is not None:
            return known
        address = self._next()
        self._append({"id": sandbox_id, "address": str(address)})
        return address

    def _next(self) -> IPv4Address:
        """The next in turn that is neither taken nor rests, else the one that has rested longest."""
        network, taken = self._network(), {int(address) for address in self._leases.values()}
        first, usable = int(network[2]), network.num_addresses - 3  # network, gateway, broadcast
        while self._resting and next(iter(self._resting.values())) <= self._clock() - REST_S:
            self._resting.popitem(last=False)
        if len(taken) + len(self._resting) < usable:
            numbers = (first + (self._last + step) % usable for step in range(usable))
            return IPv4Address(next(number for number in numbers if number not in taken and number not in self._resting))
        if self._resting:
            return IPv4Address(next(iter(self._resting)))
        raise RuntimeFault("network.no-address", f"all {usable} addresses of {network} are taken", retryable=True)

    def is_ready(self, sandbox_id: str) -> bool:
        """Whether everything of it had been made when the agent last could say."""
        return sandbox_id in self._ready

    def set_ready(self, sandbox_id: str) -> None:
        self._append({"ready": sandbox_id})

    def release(self, sandbox_id: str) -> None:
        """Only its owner's name gives an address back; whoever has it since is not touched (reference/miren-sandbox.md §11.27)."""
        if sandbox_id in self._leases:
            self._append({"released": sandbox_id, "at": self._clock()})

    def _load(self) -> None:
        if not self._path.exists():
            return
        for line in self._path.read_bytes().splitlines():
            try:
                self._apply(json.loads(line))
            except ValueError:
                continue  # the last line of an agent that was killed while it wrote: never acted upon
        self._compact()

    def _apply(self, entry: dict[str, Any]) -> None:
        if "policy" in entry:
            self._policies[entry["for"]] = EgressPolicy.model_validate(entry["policy"])
        elif "subnet" in entry:
            self.subnet = IPv4Network(entry["subnet"])
        elif "address" in entry:
            self._leases[entry["id"]] = IPv4Address(entry["address"])
            self._resting.pop(int(self._leases[entry["id"]]), None)
            self._last = int(self._leases[entry["id"]]) - int(self._network()[2]) + 1
        elif "ready" in entry:
            self._ready.add(entry["ready"])
        elif "given" in entry:
            spare, sandbox_id = entry["given"], entry["to"]
            self._leases[sandbox_id] = self._leases.pop(spare)
            self._ready = self._ready - {spare} | {sandbox_id}
            self._made_as[sandbox_id] = self._made_as.pop(spare, spare)
        elif "resting" in entry:
            self._resting[int(IPv4Address(entry["resting"]))] = entry["at"]
        elif "released" in entry:
            address = self._leases.pop(entry["released"], None)
            if address is not None and not is_spare(entry["released"]):  # a spare's was never anybody's
                self._resting[int(address)] = entry.get("at", 0.0)
            self._ready.discard(entry["released"])
            self._made_as.pop(entry["released"], None)
            self._policies.pop(entry["released"], None)

    def _append(self, entry: dict[str, Any]) -> None:
        with self._path.open("ab") as file:
            file.write(json.dumps(entry).encode() + b"\n")
            if "subnet" in entry:
                file.flush()
                os.fdatasync(file.fileno())
        self._apply(entry)

    def _compact(self) -> None:
        entries: list[dict[str, Any]] = [{"subnet": str(self.subnet)}] if self.subnet else []
        entries += [{"resting": str(IPv4Address(number)), "at": at} for number, at in self._resting.items()]
        entries += [{"id": self.made_as(name), "address": str(address)} for name, address in self._leases.items()]
        entries += [{"ready": self.made_as(name)} for name in sorted(self._ready)]
        entries += [{"given": spare, "to": name} for name, spare in self._made_as.items()]
        entries += [{"policy": policy.model_dump(mode="json"), "for": name} for name, policy in self._policies.items()]
        draft = self._path.with_suffix(".new")
        with draft.open("wb") as file:
            file.writelines(json.dumps(entry).encode() + b"\n" for entry in entries)
            file.flush()
            os.fsync(file.fileno())
        draft.replace(self._path)


def new_spare() -> str:
    """A name for a network that is nobody's yet."""
    return _SPARE + secrets.token_hex(6)


def is_spare(name: str) -> bool:
    return name.startswith(_SPARE)
