"""Where a sandbox may connect to: addresses, networks and domains, each with ports or all of them.

What is allowed comes first, then what is denied, then private networks are refused, then ``internet`` decides about the rest
(reference/cubesandbox.md §9). The node itself and other sandboxes are never reached, whatever is allowed. Pure.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from ipaddress import IPv4Network, IPv6Network, ip_network
from typing import Annotated, Final

from pydantic import AfterValidator, Field, StringConstraints, ValidationInfo, field_validator

from domain.kernel.aggregate import Record

Network = IPv4Network | IPv6Network

EVERYTHING: Final[tuple[Network, ...]] = (IPv4Network("0.0.0.0/0"), IPv6Network("::/0"))

PRIVATE: Final[tuple[Network, ...]] = tuple(
    ip_network(text)
    for text in (
        "0.0.0.0/8", "10.0.0.0/8", "100.64.0.0/10", "127.0.0.0/8", "169.254.0.0/16", "172.16.0.0/12", "192.0.0.0/24", "192.168.0.0/16",
        "198.18.0.0/15", "224.0.0.0/4", "240.0.0.0/4", "::/96", "::ffff:0:0/96", "64:ff9b::/96", "64:ff9b:1::/48", "fc00::/7", "fe80::/10",
        "ff00::/8",
    )
)  # fmt: skip
"""Networks of somebody's own, of this host, of the link (cloud metadata is there), and ways to write those as IPv6. RFC 6890."""

_DOMAIN: Final = re.compile(r"^(\*\.)?([a-z0-9_]([a-z0-9_-]{0,61}[a-z0-9_])?\.)+[a-z]([a-z0-9-]{0,61}[a-z0-9])?$")
_PORTS: Final = re.compile(r"^(\d{1,5})(?:-(\d{1,5}))?$")


@dataclass(frozen=True, slots=True)
class Destination:
    """``networks``, or else a ``domain`` (with a leading ``*.``: what is below it, not it). ``ports``: first and last, None for all."""

    networks: tuple[Network, ...] = ()
    domain: str = ""
    ports: tuple[int, int] | None = None

    def names(self, host: str) -> bool:
        """Whether its domain is, or covers, this host name in lower case without a final dot."""
        return host.endswith(self.domain[1:]) if self.domain.startswith("*.") else bool(self.domain) and host == self.domain


def parse(text: str) -> Destination:
    """``10.0.0.0/8``, ``1.1.1.1:53``, ``[fd00::/8]:80-90``, ``example.org:443``, ``*.example.org``, ``*``. Raises ``ValueError``."""
    host, ports = _apart(text)
    span = None if ports is None else _span(text, ports)
    if host == "*":
        return Destination(EVERYTHING, ports=span)
    if ":" in host or re.fullmatch(r"[\d./]+", host):
        try:
            network = ip_network(host)
        except ValueError as error:
            raise ValueError(f"{text!r}: {error}") from None
        return Destination(EVERYTHING if network == EVERYTHING[0] else (network,), ports=span)
    domain = host.lower().removesuffix(".")
    if len(domain) > 253 or not _DOMAIN.match(domain):
        raise ValueError(f"{text!r} is no address, network or domain")
    return Destination(domain=domain, ports=span)


def _apart(text: str) -> tuple[str, str | None]:
    """Host and ports. An IPv6 address with ports is in brackets."""
    if text.startswith("["):
        host, closed, rest = text[1:].partition("]")
        if not closed or ":" not in host or (rest and not rest.startswith(":")):
            raise ValueError(f"{text!r} is no [address]:ports")
        return host, rest[1:] if rest else None
    if text.count(":") > 1:
        return text, None
    host, colon, ports = text.partition(":")
    return host, ports if colon else None


def _span(text: str, ports: str) -> tuple[int, int]:
    found = _PORTS.match(ports)
    first, last = (int(found[1]), int(found[2] or found[1])) if found else (0, 0)
    if not 1 <= first <= last <= 65_535:
        raise ValueError(f"{text!r}: ports are 1 to 65535, as 443 or 8000-8080")
    return first, last


def _sound(text: str) -> str:
    parse(text)
    return text


def _numeric(text: str) -> str:
    if parse(text).domain:
        raise ValueError(f"{text!r} is a domain: what is denied is told by addresses and networks")
    return text


Text = Annotated[str, StringConstraints(min_length=1, max_length=300, pattern=r"^[A-Za-z0-9*:./_\[\]-]+$")]
Allowed = Annotated[tuple[Annotated[Text, AfterValidator(_sound)], ...], Field(max_length=1024)]
Denied = Annotated[tuple[Annotated[Text, AfterValidator(_numeric)], ...], Field(max_length=1024)]


class EgressPolicy(Record):
    """Which addresses, networks or domains a sandbox may talk to.

    ``internet``: also everything that is neither denied nor private. A domain is known by its DNS answers, so to allow one means
    something only where the rest is refused: without ``internet``, or with everything denied (reference/cubesandbox.md §3.2).
    """

    allow: Allowed = ()
    deny: Denied = ()
    internet: bool = Field(default=True, validate_default=True)

    @field_validator("internet")
    @classmethod
    def _domains_need_a_wall(cls, internet: bool, info: ValidationInfo) -> bool:
        if internet and {"allow", "deny"} <= info.data.keys():
            allow, deny = map(parse, info.data["allow"]), map(parse, info.data["deny"])
            if any(d.domain for d in allow) and not any(d.networks == EVERYTHING and d.ports is None for d in deny):
                raise ValueError("a domain in allow needs internet: false, or 0.0.0.0/0 in deny: the rest would be open anyway")
        return internet

    @property
    def allowed(self) -> Sequence[Destination]:
        return [parse(text) for text in self.allow]

    @property
    def denied(self) -> Sequence[Destination]:
        return [parse(text) for text in self.deny]

    @property
    def lets_out(self) -> bool:
        """Whether there is anything at all that it allows."""
        return bool(self.allow) or (self.internet and not any(d.networks == EVERYTHING and d.ports is None for d in self.denied))

    def resolves(self, host: str) -> bool:
        """Whether the name may be asked for: a question to a stranger's name server is a way out, too."""
        return self.internet or any(d.names(host) for d in self.allowed)


def by_ports(destinations: Iterable[Destination]) -> dict[tuple[int, int] | None, list[Destination]]:
    """The same, apart by their ports."""
    found: dict[tuple[int, int] | None, list[Destination]] = {}
    for destination in destinations:
        found.setdefault(destination.ports, []).append(destination)
    return found


def is_private(address: Network) -> bool:
    """Whether all of it is private."""
    return any(address.version == network.version and address.subnet_of(network) for network in PRIVATE)  # type: ignore[arg-type]
