"""What an egress policy says: destinations, and where it lets a sandbox out at all."""

from __future__ import annotations

from ipaddress import ip_network

import pytest

from domain.kernel.errors import Invalid
from domain.sandboxes.commands import SandboxCreate
from domain.sandboxes.egress import EVERYTHING, Destination, EgressPolicy, by_ports, is_private, parse

pytestmark = pytest.mark.quick


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("1.1.1.1", Destination((ip_network("1.1.1.1"),))),
        ("10.0.0.0/8:443", Destination((ip_network("10.0.0.0/8"),), ports=(443, 443))),
        ("2001:db8::/32", Destination((ip_network("2001:db8::/32"),))),
        ("[fd00::1]:8000-8080", Destination((ip_network("fd00::1"),), ports=(8000, 8080))),
        ("Example.ORG.", Destination(domain="example.org")),
        ("*.example.org:443", Destination(domain="*.example.org", ports=(443, 443))),
        ("*", Destination(EVERYTHING)),
        ("0.0.0.0/0", Destination(EVERYTHING)),
        ("*:53", Destination(EVERYTHING, ports=(53, 53))),
    ],
)
def test_a_destination_is_read(text: str, said: Destination) -> None:
    assert parse(text) == said


@pytest.mark.parametrize(
    "text",
    [
        "10.0.0.1/8", "1.2.3.400", "1.2.3", "1.1.1.1:0", "1.1.1.1:65536", "1.1.1.1:90-80", "1.1.1.1:", "1.1.1.1:http", "fd00::1/8",
        "[1.1.1.1]:80", "[fd00::1", "[fd00::1]80", "localhost", "a..b", "-a.org", "*.*.org", "a*.org", "example.0", "http://example.org",
        "x" * 250 + ".org",
    ],
)  # fmt: skip
def test_what_is_no_destination_is_refused_at_its_place(text: str) -> None:
    with pytest.raises(Invalid) as caught:
        SandboxCreate.parse(b'{"template":"base","egress":{"internet":false,"allow":["1.1.1.1","%s"]}}' % text.encode())
    assert list(caught.value.details) == ["egress.allow.1"]


def test_a_domain_means_something_only_behind_a_wall() -> None:
    """reference/cubesandbox.md §3.2."""
    with pytest.raises(ValueError, match="would be open anyway"):
        EgressPolicy(allow=("example.org",))
    with pytest.raises(ValueError, match="would be open anyway"):
        EgressPolicy(allow=("example.org",), deny=("0.0.0.0/0:443",))
    with pytest.raises(ValueError, match="by addresses and networks"):
        EgressPolicy(deny=("example.org",))
    assert EgressPolicy(allow=("example.org",), internet=False).lets_out
    assert EgressPolicy(allow=("example.org",), deny=("0.0.0.0/0",)).lets_out
    assert EgressPolicy(allow=("1.1.1.1",)).lets_out


def test_only_a_policy_that_allows_nothing_lets_nothing_out() -> None:
    assert not EgressPolicy(internet=False).lets_out
    assert not EgressPolicy(deny=("*",)).lets_out
    assert EgressPolicy(deny=("*:25",)).lets_out
    assert EgressPolicy().lets_out


def test_a_name_is_asked_for_only_if_it_may_be_reached() -> None:
    policy = EgressPolicy(allow=("example.org:443", "*.pypi.org"), internet=False)
    assert [name for name in ("example.org", "a.example.org", "pypi.org", "files.pypi.org", "notpypi.org") if policy.resolves(name)] == [
        "example.org",
        "files.pypi.org",
    ]
    assert EgressPolicy().resolves("anything.at.all")


def test_destinations_are_apart_by_their_ports() -> None:
    found = by_ports(map(parse, ("1.1.1.1:53", "example.org", "9.9.9.9:53", "10.0.0.0/8")))
    assert {span: len(some) for span, some in found.items()} == {(53, 53): 2, None: 2}


@pytest.mark.parametrize("address", ["10.1.2.3", "169.254.169.254", "100.64.0.9", "::1", "fd00::1", "::ffff:10.0.0.1", "64:ff9b::a00:1"])
def test_private_addresses_are_known_in_every_spelling(address: str) -> None:
    assert is_private(ip_network(address))


@pytest.mark.parametrize("address", ["1.1.1.1", "203.0.113.10", "2606:4700::1111"])
def test_the_world_is_not_private(address: str) -> None:
    assert not is_private(ip_network(address))
