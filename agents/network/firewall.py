"""What may pass between sandboxes and the rest of the world: one nftables table per agent, made once, without a rule per sandbox.

Refusals are answered at once (reject, not drop): a sandbox that asks for what it may not have learns it without waiting for a time-out
(reference/runtimes.md §8).
"""

from __future__ import annotations

from ipaddress import IPv4Network

from agents.drivers.driver import RuntimeFault
from agents.host import spawn


def rules(table: str, bridge: str, subnet: IPv4Network, *, egress: bool) -> str:
    """Sandboxes never reach the node itself; the world only with ``egress``, behind the node's address.

    Refused in prerouting: where the node does not forward at all, packets never come to a forward chain and would vanish in silence.
    """
    leave = "accept" if egress else "reject with icmpx type admin-prohibited"
    masquerade = (
        f'chain outgoing {{ type nat hook postrouting priority 100; ip saddr {subnet} oifname != "{bridge}" masquerade; }}'
        if egress
        else ""
    )
    return f"""
add table inet {table}
delete table inet {table}
table inet {table} {{
  chain arriving {{ type filter hook prerouting priority 0; policy accept;
    iifname "{bridge}" ct state established,related accept;
    iifname "{bridge}" fib daddr type unicast {leave}; }}
  chain incoming {{ type filter hook input priority 0; policy accept;
    iifname "{bridge}" ct state established,related accept;
    iifname "{bridge}" icmp type echo-request accept;
    iifname "{bridge}" reject with icmpx type admin-prohibited; }}
  chain passing {{ type filter hook forward priority 0; policy accept;
    oifname "{bridge}" ct state established,related accept;
    oifname "{bridge}" iifname != "{bridge}" reject with icmpx type admin-prohibited;
    iifname "{bridge}" oifname "{bridge}" reject with icmpx type admin-prohibited;
    iifname "{bridge}" {leave}; }}
  {masquerade}
}}
"""


async def install(table: str, bridge: str, subnet: IPv4Network, *, egress: bool) -> None:
    """Replace the table in one transaction."""
    await _nft(rules(table, bridge, subnet, egress=egress))


async def remove(table: str) -> None:
    await _nft(f"add table inet {table}\ndelete table inet {table}\n")


async def _nft(text: str) -> None:
    try:
        done = await spawn.run(["nft", "-f", "-"], stdin=text.encode(), timeout_s=20)
    except FileNotFoundError as error:
        raise RuntimeFault("network.no-nft", "nft is not installed (apt-get install nftables)") from error
    if done.code != 0:
        raise RuntimeFault("network.rules-refused", done.complaint())
