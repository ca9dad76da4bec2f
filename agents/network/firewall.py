"""What may pass between sandboxes and the rest of the world: one nftables table per agent.

It is made once; beside it only a sandbox with an egress policy of its own has rules (``agents.network.egress``).

Refusals are answered at once (reject, not drop): a sandbox that asks for what it may not have learns it without waiting for a time-out
(reference/runtimes.md §8).
"""

from __future__ import annotations

import re
from collections.abc import Collection, Mapping, Sequence
from ipaddress import IPv4Address, IPv4Network
from typing import Final

from agents.drivers.driver import RuntimeFault
from agents.network.egress import REFUSED, learn, put_up, sets, shared, take_down
from agents.network.nft import Nft
from domain.sandboxes.egress import EgressPolicy

QUESTIONS: Final = 100
"""For names, that a sandbox may ask a second; the agent answers them. More are refused."""
_NAMED: Final = re.compile(r"set (names-\S+) \{[^{}]*elements = \{([^{}]*)\}")
"""A set with something in it, as ``nft list table`` shows it."""


def rules(table: str, bridge: str, subnet: IPv4Network, *, egress: bool) -> str:
    """Sandboxes never reach the node itself; the world, but no private network, only with ``egress``, behind the node's address.

    Refused in prerouting: where the node does not forward at all, packets never come to a forward chain and would vanish in silence.
    """
    masquerade = (
        f'chain outgoing {{ type nat hook postrouting priority 100; ip saddr {subnet} oifname != "{bridge}" masquerade; }}'
        if egress
        else ""
    )
    return f"""
add table inet {table}
delete table inet {table}
table inet {table} {{
  {shared()}
  chain arriving {{ type filter hook prerouting priority 0; policy accept;
    iifname "{bridge}" ct state established,related accept;
    iifname "{bridge}" fib daddr type unicast jump leaving; }}
  chain leaving {{
    {"ip saddr vmap @egress; goto world" if egress else REFUSED}; }}
  chain incoming {{ type filter hook input priority 0; policy accept;
    iifname "{bridge}" ct state established,related accept;
    iifname "{bridge}" icmp type echo-request accept;
    iifname "{bridge}" ip daddr {subnet[1]} udp dport 53 meter questions {{ ip saddr limit rate {QUESTIONS}/second }} accept;
    iifname "{bridge}" {REFUSED}; }}
  chain passing {{ type filter hook forward priority 0; policy accept;
    oifname "{bridge}" ct state established,related accept;
    oifname "{bridge}" iifname != "{bridge}" {REFUSED};
    iifname "{bridge}" oifname "{bridge}" {REFUSED};
    iifname "{bridge}" {"accept" if egress else REFUSED}; }}
  {masquerade}
}}
"""


class Firewall:
    """The table. ``egress``: whether this node lets sandboxes out at all; the policies of sandboxes then say which, and where to."""

    def __init__(self, table: str, bridge: str, *, egress: bool) -> None:
        self._table, self._bridge, self._egress = table, bridge, egress
        self._kernel: Nft | None = None

    def install(self, subnet: IPv4Network, policies: Mapping[IPv4Address, EgressPolicy]) -> None:
        """Replace the table, with what holds for each address, in one transaction: nothing is open meanwhile."""
        text = rules(self._table, self._bridge, subnet, egress=self._egress)
        text += "".join(put_up(self._table, address, policy) for address, policy in policies.items())
        self._run(text + self._learnt({name for at, policy in policies.items() for name in sets(at, policy)}))

    def learn(self, address: IPv4Address, policy: EgressPolicy, host: str, answers: Sequence[IPv4Address], seconds: int) -> None:
        """Let these be reached for so long, as the addresses of a name that the policy allows."""
        if text := learn(self._table, address, policy, host, answers, seconds):
            self._run(text)

    def _learnt(self, wanted: Collection[str]) -> str:
        """What is open by names now, to be opened again, each for the rest of its time."""
        try:
            there = self._run(f"list table inet {self._table}") if wanted else ""
        except RuntimeFault:  # there is no table yet
            return ""
        found = ((name, elements) for name, elements in _NAMED.findall(there) if name in wanted)
        return "".join(f"add element inet {self._table} {name} {{ {' '.join(elements.split())} }}\n" for name, elements in found)

    def put_up(self, address: IPv4Address, policy: EgressPolicy) -> None:
        self._run(put_up(self._table, address, policy))

    def take_down(self, address: IPv4Address, policy: EgressPolicy) -> None:
        self._run(take_down(self._table, address, policy))

    def remove(self) -> None:
        self._run(f"add table inet {self._table}\ndelete table inet {self._table}\n")

    def _run(self, text: str) -> str:
        if self._kernel is None:
            self._kernel = Nft()
        return self._kernel.run(text)
