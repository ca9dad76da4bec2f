"""The rules of one sandbox's egress policy, as text for nftables: a chain that its address leads to (``agents.network.firewall``).

| in a table | is |
|---|---|
| map ``egress`` | which chain an address leads to; one that is not in it has no policy of its own |
| chain ``from-<address>`` | what is allowed, then what is denied, then whether the rest is the world or nothing |
| set ``names-<address>-<n>`` | addresses that the names allowed for the n-th span of ports were answered with, each for its time |
| chain ``world`` | everything but private networks |

Names follow from the address alone, so that what is there can be removed by whoever only knows that. Putting rules up twice, or taking them
down twice, is the same as once.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from ipaddress import IPv4Address, collapse_addresses
from typing import Final

from domain.sandboxes.egress import PRIVATE, Destination, EgressPolicy, Network, by_ports

REFUSED: Final = "reject with icmpx type admin-prohibited"
MOST_NAMES: Final = 65_536
"""Addresses that one sandbox's names may have at a time."""

Span = tuple[int, int] | None


_LEADS: Final = "type ipv4_addr : verdict"


def shared() -> str:
    """What every policy uses."""
    return f"""map egress {{ {_LEADS}; }}
  chain world {{
    {_destinations(PRIVATE, REFUSED)}
    accept;
  }}"""


def put_up(table: str, address: IPv4Address, policy: EgressPolicy) -> str:
    """Let this policy hold for an address, instead of an earlier one."""
    chain, spans = _chain(address), _spans(policy)
    lines = [f"add chain inet {table} {chain}", f"flush chain inet {table} {chain}"]
    lines += [f"add set inet {table} {_set(address, n)} {{ {_KIND}; }}" for n in range(len(spans))]
    lines += [f"add rule inet {table} {chain} {rule}" for rule in _rules(address, policy, spans)]
    lines.append(f"add element inet {table} egress {{ {address} : goto {chain} }}")
    return "\n".join(lines) + "\n"


_KIND: Final = f"type ipv4_addr; flags timeout; size {MOST_NAMES}"


def take_down(table: str, address: IPv4Address, policy: EgressPolicy) -> str:
    """Let no policy of its own hold for an address; no matter whether this one does, or there is a table at all."""
    chain = _chain(address)
    lines = [f"add table inet {table}", f"add map inet {table} egress {{ {_LEADS}; }}"]
    lines += [f"add chain inet {table} {chain}", f"add element inet {table} egress {{ {address} : goto {chain} }}"]
    lines += [f"delete element inet {table} egress {{ {address} }}", f"flush chain inet {table} {chain}"]
    lines.append(f"delete chain inet {table} {chain}")
    for n in range(len(_spans(policy))):
        lines += [f"add set inet {table} {_set(address, n)} {{ {_KIND}; }}", f"delete set inet {table} {_set(address, n)}"]
    return "\n".join(lines) + "\n"


def learn(table: str, address: IPv4Address, policy: EgressPolicy, host: str, answers: Sequence[IPv4Address], seconds: int) -> str:
    """Let the addresses of a host name that the policy allows be reached for so long; empty when it allows no such name."""
    elements = ", ".join(f"{answer} timeout {seconds}s" for answer in answers)
    meant = [n for n, (_, named) in enumerate(_spans(policy)) if any(d.names(host) for d in named)]
    lines = [line for n in meant for line in _again(table, _set(address, n), answers, elements)] if answers else []
    return "\n".join(lines) + "\n" if lines else ""


def _again(table: str, name: str, answers: Sequence[IPv4Address], elements: str) -> Iterator[str]:
    """An element that is there keeps its old time unless it is made anew."""
    yield f"add element inet {table} {name} {{ {elements} }}"
    yield f"delete element inet {table} {name} {{ {', '.join(map(str, answers))} }}"
    yield f"add element inet {table} {name} {{ {elements} }}"


def sets(address: IPv4Address, policy: EgressPolicy) -> list[str]:
    """Names of its sets."""
    return [_set(address, n) for n in range(len(_spans(policy)))]


def _spans(policy: EgressPolicy) -> list[tuple[Span, list[Destination]]]:
    """The domains that it allows, apart by their ports; each of these has a set of its own."""
    return list(by_ports(d for d in policy.allowed if d.domain).items())


def _rules(address: IPv4Address, policy: EgressPolicy, spans: Sequence[tuple[Span, object]]) -> Iterator[str]:
    for span, allowed in by_ports(d for d in policy.allowed if d.networks).items():
        yield from _matching(span, allowed, "accept")
    for n, (span, _) in enumerate(spans):
        yield f"{_ports(span)}ip daddr @{_set(address, n)} accept"
    for span, denied in by_ports(policy.denied).items():
        yield from _matching(span, denied, REFUSED)
    yield "goto world" if policy.internet else REFUSED


def _matching(span: Span, destinations: Iterable[Destination], verdict: str) -> Iterator[str]:
    networks = [network for d in destinations for network in d.networks]
    for family, version in (("ip", 4), ("ip6", 6)):
        if some := _collapsed(networks, version):
            yield f"{_ports(span)}{family} daddr {{ {some} }} {verdict}"


def _destinations(networks: Iterable[Network], verdict: str) -> str:
    known = list(networks)
    return f"ip daddr {{ {_collapsed(known, 4)} }} {verdict};\n    ip6 daddr {{ {_collapsed(known, 6)} }} {verdict};"


def _collapsed(networks: Iterable[Network], version: int) -> str:
    """Of one family, by commas: intervals of a set must not overlap."""
    return ", ".join(str(found) for found in collapse_addresses(n for n in networks if n.version == version))  # type: ignore[type-var]


def _ports(span: Span) -> str:
    return "" if span is None else f"meta l4proto {{ tcp, udp }} th dport {span[0]}-{span[1]} "


def _chain(address: IPv4Address) -> str:
    return f"from-{address}"


def _set(address: IPv4Address, number: int) -> str:
    return f"names-{address}-{number}"
