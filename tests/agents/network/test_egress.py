"""Where sandboxes get to: each by the policy of its own, on a real network with a world outside."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from ipaddress import IPv4Network
from pathlib import Path

import pytest
from support.inside import inside, listen, reach
from support.outside import NODE, OTHER, PRIVATE, PUBLIC, World, world
from support.waiting import run

from agents.drivers.driver import RuntimeFault
from agents.network.ledger import Ledger
from agents.network.netns import Attachment, BridgeNetwork, NoNetwork
from agents.network.nft import Nft
from domain.sandboxes.egress import EgressPolicy

root = pytest.mark.root
REFUSED = "No route to host"
SERVED = [(address, port) for address in (PUBLIC, OTHER, PRIVATE) for port in (80, 81)]


@pytest.fixture
def outside(directory: Path) -> Iterator[World]:
    with world(directory) as made, made.serving(*SERVED):
        yield made


@contextmanager
def letting_out(directory: Path) -> Iterator[BridgeNetwork]:
    network = BridgeNetwork(directory, egress=True)
    run(network.setup())
    try:
        yield network
    finally:
        run(network.teardown())


def reached(attached: Attachment) -> set[str]:
    """What of all that is served it gets to. Every refusal is told at once."""
    answers = {f"{address}:{port}": inside(attached.netns, lambda a=address, p=port: reach(a, p)) for address, port in SERVED}
    assert set(answers.values()) <= {"open", REFUSED}
    return {place for place, answer in answers.items() if answer == "open"}


def places(*addresses: str) -> set[str]:
    return {f"{address}:{port}" for address in addresses for port in (80, 81)}


@root
@pytest.mark.usefixtures("outside")
def test_each_sandbox_gets_where_its_policy_lets_it_and_no_further(directory: Path) -> None:
    policies = {
        "none": (None, places(PUBLIC, OTHER)),  # private networks are denied unless somebody allows them
        "closed": (EgressPolicy(internet=False), set()),
        "one": (EgressPolicy(allow=(PUBLIC,), internet=False), places(PUBLIC)),
        "port": (EgressPolicy(allow=(f"{PUBLIC}:81",), internet=False), {f"{PUBLIC}:81"}),
        "range": (EgressPolicy(allow=("192.168.0.0/16:1-80",)), {*places(PUBLIC, OTHER), f"{PRIVATE}:80"}),
        "denied": (EgressPolicy(deny=(f"{PUBLIC}:80", OTHER)), {f"{PUBLIC}:81"}),
        "both": (EgressPolicy(allow=(PUBLIC,), deny=("203.0.0.0/16",)), places(PUBLIC)),  # allowed comes first
        "all": (EgressPolicy(allow=("*",), internet=False), places(PUBLIC, OTHER, PRIVATE)),
    }
    with letting_out(directory) as network:
        attached = {name: run(network.attach(name, policy)) for name, (policy, _) in policies.items()}
        assert {name: reached(attached[name]) for name in policies} == {name: expected for name, (_, expected) in policies.items()}
        with listen() as node:
            port = node.getsockname()[1]
            ways = {inside(attached["all"].netns, lambda at=at: reach(at, port)) for at in (NODE, attached["all"].gateway)}
        assert ways == {REFUSED}, "the node itself stays out of reach"
        assert inside(attached["all"].netns, lambda: reach(attached["one"].address, 80, timeout=0.5)) != "open"


@root
@pytest.mark.usefixtures("outside")
def test_a_policy_holds_on_over_the_agents_end_and_goes_with_its_sandbox(directory: Path) -> None:
    with letting_out(directory) as first:
        one = run(first.attach("sb-1", EgressPolicy(allow=(PUBLIC,), internet=False)))
        later = BridgeNetwork(directory, egress=True)  # as after a kill: nobody had time to say anything
        run(later.setup())
        assert reached(one) == places(PUBLIC)
        assert run(later.attach("sb-1", EgressPolicy(allow=(PUBLIC,), internet=False))) == one
        assert reached(one) == places(PUBLIC)
        run(later.detach("sb-1"))
        assert one.address not in Nft().run(f"list table inet {later.table}")
        later._ledger._resting.clear()
        later._ledger._last -= 1  # the next one gets the same address
        two = run(later.attach("sb-2"))
        assert (two.address, inside(two.netns, lambda: reach(OTHER, 80))) == (one.address, "open")


@root
@pytest.mark.usefixtures("outside")
def test_a_policy_that_was_cut_short_is_put_up_by_the_next_agent(directory: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    closed = EgressPolicy(internet=False)
    with letting_out(directory) as network:
        with monkeypatch.context() as patch:
            patch.setattr(network._firewall, "put_up", _fail)
            with pytest.raises(RuntimeFault):
                run(network.attach("sb-1", closed))
        later = BridgeNetwork(directory, egress=True)
        run(later.setup())
        netns = later._path("sb-1")
        assert inside(netns, lambda: reach(PUBLIC, 80)) == REFUSED
        with monkeypatch.context() as patch:
            patch.setattr(later._firewall, "take_down", _fail)
            with pytest.raises(RuntimeFault):
                run(later.detach("sb-1"))
        assert set(run(later.list())) == {"sb-1"}, "an address is not free before its rules are gone"
        Nft().run(f"delete table inet {later.table}")  # as after the machine's end
        run(later.detach("sb-1"))
        assert "from-" not in Nft().run(f"list table inet {later.table}")


def _fail(*_: object) -> None:
    raise RuntimeFault("network.rules-refused", "cut short")


@root
def test_rules_that_the_kernel_refuses_change_nothing(network: BridgeNetwork) -> None:
    before = Nft().run(f"list table inet {network.table}")
    with pytest.raises(RuntimeFault) as refusal:
        Nft().run(f"flush table inet {network.table}\nadd rule inet {network.table} nowhere accept\n")
    assert refusal.value.code == "network.rules-refused"
    assert Nft().run(f"list table inet {network.table}") == before


@root
def test_where_nothing_gets_out_only_a_policy_that_lets_nothing_out_is_taken(network: BridgeNetwork) -> None:
    for one in (network, NoNetwork()):
        with pytest.raises(RuntimeFault) as refusal:
            run(one.attach("sb-1", EgressPolicy(allow=(PUBLIC,), internet=False)))
        assert refusal.value.code == "sandbox.unsupported"
        assert run(one.list()) == {}
        run(one.attach("sb-2", EgressPolicy(internet=False)))
        run(one.detach("sb-2"))


@pytest.mark.quick
def test_a_policy_is_kept_with_the_address_and_given_back_with_it(tmp_path: Path) -> None:
    ledger = Ledger(tmp_path / "leases")
    ledger.choose(IPv4Network("10.0.0.0/24"))
    spare, policy = ".spare-1", EgressPolicy(allow=("1.1.1.1:53",), internet=False)
    ledger.lease(spare)
    ledger.give(spare, "a")
    ledger.set_policy("a", policy)
    for again in (Ledger(tmp_path / "leases"), Ledger(tmp_path / "leases")):
        assert again.policies == {again.leases["a"]: policy}
    again.release("a")
    assert (again.policies, Ledger(tmp_path / "leases").policies) == ({}, {})
