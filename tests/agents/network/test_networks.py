"""A network per sandbox: who reaches whom, what stays, what goes."""

from __future__ import annotations

import asyncio
import subprocess
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from ipaddress import IPv4Address, IPv4Network
from pathlib import Path

import pytest
from support.inside import inside, listen, reach
from support.outside import NODE, PUBLIC, world
from support.waiting import eventually, run

from agents.drivers.driver import RuntimeFault
from agents.network import namespaces
from agents.network.firewall import rules
from agents.network.ledger import REST_S, Ledger
from agents.network.netns import BridgeNetwork, NoNetwork
from agents.network.rtnetlink import Route

root = pytest.mark.root
quick = pytest.mark.quick


@root
def test_a_sandbox_gets_an_address_that_the_node_reaches(network: BridgeNetwork) -> None:
    async def scenario() -> None:
        attached = await network.attach("sb-1")
        with inside(attached.netns, listen) as server:
            assert reach(attached.address, server.getsockname()[1]) == "open"
        assert IPv4Address(attached.address) in IPv4Network("100.64.0.0/10")
        with inside(attached.netns, lambda: listen("127.0.0.1")) as server:
            assert inside(attached.netns, lambda: reach("127.0.0.1", server.getsockname()[1])) == "open"

    run(scenario())


@root
def test_attaching_again_changes_nothing(network: BridgeNetwork, directory: Path) -> None:
    async def scenario() -> None:
        first = await network.attach("sb-1")
        server = inside(first.netns, listen)
        assert await network.attach("sb-1") == first
        later = BridgeNetwork(directory)
        await later.setup()
        assert await later.attach("sb-1") == first
        assert reach(first.address, server.getsockname()[1]) == "open"
        server.close()
        assert await later.list() == {"sb-1": first.address}

    run(scenario())


@root
def test_sandboxes_reach_neither_each_other_nor_the_node(network: BridgeNetwork) -> None:
    async def scenario() -> None:
        one, two = await asyncio.gather(network.attach("sb-1"), network.attach("sb-2"))
        assert one.address != two.address
        with inside(two.netns, listen) as other, listen() as node:
            port = node.getsockname()[1]
            began = time.monotonic()
            assert inside(one.netns, lambda: reach(str(network._ledger.gateway), port)) in ("No route to host", "Connection refused")
            assert inside(one.netns, lambda: reach("192.0.2.1", 80)) in ("No route to host", "Network is unreachable")
            assert time.monotonic() - began < 1  # refused, not left waiting
            assert inside(one.netns, lambda: reach(two.address, other.getsockname()[1], timeout=0.5)) != "open"

    run(scenario())


@root
def test_with_egress_the_world_is_reached_as_the_node_and_without_it_is_not(directory: Path) -> None:
    with world(directory) as outside, outside.serving((PUBLIC, 80)) as (server,):
        run(_reach_world(directory, server, egress=False))
        run(_reach_world(directory, server, egress=True))


async def _reach_world(directory: Path, server, *, egress: bool) -> None:
    network = BridgeNetwork(directory, egress=egress)
    await network.setup()
    one, two = await network.attach("sb-1"), await network.attach("sb-2")
    port = server.getsockname()[1]
    try:
        if not egress:
            assert inside(one.netns, lambda: reach(PUBLIC, port)) == "No route to host"
            return
        assert inside(one.netns, lambda: reach(PUBLIC, port)) == "open"
        connection, peer = server.accept()
        connection.close()
        assert peer[0] == NODE
        with inside(two.netns, listen) as other:
            assert inside(one.netns, lambda: reach(two.address, other.getsockname()[1], timeout=0.5)) != "open"
    finally:
        await network.teardown()


@root
def test_detaching_leaves_nothing_and_twice_is_fine(network: BridgeNetwork) -> None:
    async def scenario() -> None:
        attached = await network.attach("sb-1")
        await network.detach("sb-1")
        await network.detach("sb-1")
        await network.detach("sb-never-heard-of")
        assert not attached.netns.exists()
        assert await network.list() == {}
        with Route() as route:
            assert route.index(network._link("sb-1")) is None

    run(scenario())


@root
@pytest.mark.parametrize("step", ["add_veth", "add_address", "add_default_route"])
def test_an_attachment_that_was_cut_short_is_finished_by_the_next(
    network: BridgeNetwork, directory: Path, monkeypatch: pytest.MonkeyPatch, step: str
) -> None:
    async def scenario() -> None:
        with monkeypatch.context() as patch:
            patch.setattr(Route, step, _fail)
            with pytest.raises(RuntimeFault) as refusal:
                await network.attach("sb-1")
            assert refusal.value.retryable
        assert set(await network.list()) == {"sb-1"}
        attached = await BridgeNetwork(directory).attach("sb-1")
        with inside(attached.netns, listen) as server:
            assert reach(attached.address, server.getsockname()[1]) == "open"

    run(scenario())


def _fail(*_: object) -> None:
    raise OSError(5, "cut short")


@asynccontextmanager
async def stocking(network: BridgeNetwork) -> AsyncIterator[None]:
    """The stock is full when the block begins, and filled up again while it lasts."""
    task = asyncio.create_task(network.stock())
    await eventually(lambda: len(network._ledger.spares) == 2)
    yield
    task.cancel()
    await asyncio.gather(task, return_exceptions=True)


@root
def test_a_sandbox_gets_one_from_stock_that_is_its_own_from_then_on(network: BridgeNetwork, directory: Path) -> None:
    async def scenario() -> None:
        await network._fill_up()
        spares = network._ledger.spares
        assert await network.list() == {}  # they are nobody's
        one, two, three = [await network.attach(f"sb-{number}") for number in (1, 2, 3)]
        assert [attached.netns.name for attached in (one, two, three)] == [*spares, "sb-3"]
        later = BridgeNetwork(directory)
        await later.setup()
        assert await later.attach("sb-1") == one
        assert await later.list() == {"sb-1": one.address, "sb-2": two.address, "sb-3": three.address}
        with inside(one.netns, listen) as server:
            assert reach(one.address, server.getsockname()[1]) == "open"
            assert inside(two.netns, lambda: reach(one.address, server.getsockname()[1], timeout=0.5)) != "open"
        link = later._link("sb-1")
        await later.detach("sb-1")
        assert not one.netns.exists()
        assert set(await later.list()) == {"sb-2", "sb-3"}
        with Route() as route:
            assert route.index(link) is None

    run(scenario())


@root
def test_the_stock_is_filled_up_when_nobody_waits_and_goes_with_its_keeper(network: BridgeNetwork) -> None:
    async def scenario() -> None:
        async with stocking(network):
            await network.attach("sb-1")
            assert len(network._ledger.spares) == 1
            await eventually(lambda: len(network._ledger.spares) == 2)
        assert set(network._ledger.leases) == {"sb-1"}
        assert len(list(network._namespaces.iterdir())) == 1

    run(scenario())


@root
@pytest.mark.parametrize("step", ["add_veth", "add_address", "add_default_route"])
def test_a_spare_that_was_cut_short_is_removed_by_the_next_agent(
    network: BridgeNetwork, directory: Path, monkeypatch: pytest.MonkeyPatch, step: str
) -> None:
    async def scenario() -> None:
        with monkeypatch.context() as patch:
            patch.setattr(Route, step, _fail)
            await network._fill_up()
        assert len(network._ledger.leases) == 1
        later = BridgeNetwork(directory)
        await later.setup()
        assert (later._ledger.leases, list(later._namespaces.iterdir())) == ({}, [])

    run(scenario())


@root
def test_a_spare_that_the_kernel_lost_is_made_again_for_who_gets_it(network: BridgeNetwork) -> None:
    async def scenario() -> None:
        await network._fill_up()
        namespaces.remove(network._path(network._ledger.spares[0]))
        attached = await network.attach("sb-1")
        with inside(attached.netns, listen) as server:
            assert reach(attached.address, server.getsockname()[1]) == "open"

    run(scenario())


@root
def test_what_the_kernel_lost_is_made_again_with_the_same_address(network: BridgeNetwork) -> None:
    """As after a reboot: the ledger is all that there is."""

    async def scenario() -> None:
        before = await network.attach("sb-1")
        with Route() as route:
            route.delete(route.index(network._link("sb-1")) or 0)
        namespaces.remove(before.netns)
        await network.setup()
        after = await network.attach("sb-1")
        assert after == before
        with inside(after.netns, listen) as server:
            assert reach(after.address, server.getsockname()[1]) == "open"

    run(scenario())


@root
def test_the_node_forgets_who_had_an_address(network: BridgeNetwork) -> None:
    """Else the next one to have it would not be reached until that is found out."""

    def known(address: str) -> bool:
        asked = ["ip", "neigh", "show", address, "dev", network.bridge]
        return "lladdr" in subprocess.run(asked, capture_output=True, text=True, check=True).stdout

    async def scenario() -> None:
        await network.attach("sb-0")  # the bridge forgets all when its last port goes
        attached = await network.attach("sb-1")
        with inside(attached.netns, listen) as server:
            assert reach(attached.address, server.getsockname()[1]) == "open"
        assert known(attached.address)
        await network.detach("sb-1")
        assert not known(attached.address)

    run(scenario())


@root
def test_two_agents_share_a_host(network: BridgeNetwork, directory: Path) -> None:
    async def scenario() -> None:
        other = BridgeNetwork(directory / "second")
        await other.setup()
        one, two = await network.attach("sb-1"), await other.attach("sb-1")
        assert one.address != two.address
        assert one.netns != two.netns
        await other.teardown()
        with inside(one.netns, listen) as server:
            assert reach(one.address, server.getsockname()[1]) == "open"

    run(scenario())


@root
def test_without_setup_there_is_nothing_to_attach_to(directory: Path) -> None:
    async def scenario() -> None:
        with pytest.raises(RuntimeFault) as refusal:
            await BridgeNetwork(directory).attach("sb-1")
        assert refusal.value.code == "network.not-set-up"

    run(scenario())


@quick
def test_where_there_is_no_network_sandboxes_get_none() -> None:
    async def scenario() -> None:
        nothing = NoNetwork()
        await nothing.setup()
        attached = await nothing.attach("sb-1")
        assert (attached.netns, attached.address) == (None, "")
        assert await nothing.list() == {}
        await nothing.detach("sb-1")
        await nothing.teardown()

    run(scenario())


@quick
def test_names_fit_and_differ(tmp_path: Path) -> None:
    one, two = BridgeNetwork(tmp_path / "one"), BridgeNetwork(tmp_path / "two")
    names = [network._link(f"sb-{number}") for network in (one, two) for number in range(2000)] + [one.bridge, two.bridge]
    assert max(len(name) for name in names) <= 15
    assert len(set(names)) == len(names)


@quick
def test_a_lease_is_kept_and_given_back(tmp_path: Path) -> None:
    ledger = Ledger(tmp_path / "leases")
    ledger.choose(IPv4Network("10.0.0.0/29"))
    assert str(ledger.gateway) == "10.0.0.1"
    given = {name: ledger.lease(name) for name in "abcde"}
    assert len(set(given.values())) == 5
    assert set(given.values()).isdisjoint({IPv4Address("10.0.0.0"), ledger.gateway, IPv4Address("10.0.0.7")})
    with pytest.raises(RuntimeFault) as refusal:
        ledger.lease("f")
    assert (refusal.value.code, refusal.value.retryable) == ("network.no-address", True)
    ledger.release("c")
    assert ledger.lease("f") == given["c"]
    assert Ledger(tmp_path / "leases").leases == {name: ledger.lease(name) for name in "abdef"}


@quick
def test_an_address_that_was_given_back_is_not_the_next_to_be_given(tmp_path: Path) -> None:
    ledger = Ledger(tmp_path / "leases")
    ledger.choose(IPv4Network("10.0.0.0/24"))
    first = ledger.lease("a")
    ledger.release("a")
    assert ledger.lease("b") != first
    assert Ledger(tmp_path / "leases").lease("c") not in (first, ledger.lease("b"))


@quick
def test_an_address_rests_unless_there_is_no_other(tmp_path: Path) -> None:
    """Over the agent's end, too; and what was never anybody's need not rest."""
    now = [1000.0]
    ledger = Ledger(tmp_path / "leases", lambda: now[0])
    ledger.choose(IPv4Network("10.0.0.0/29"))
    given = {name: ledger.lease(name) for name in ("a", "b", "c", ".spare-1")}
    for name in given:
        ledger.release(name)
        now[0] += 60
    ledger = Ledger(tmp_path / "leases", lambda: now[0])
    assert {ledger.lease("d"), ledger.lease("e")}.isdisjoint({given["a"], given["b"], given["c"]})
    assert ledger.lease("f") == given["a"], "all others are taken, or rest less long"
    ledger.release("d")
    now[0] += REST_S
    assert ledger.lease("g") == given["b"], "rested, and next in turn"
    assert Ledger(tmp_path / "leases", lambda: now[0]).leases == ledger.leases


@quick
def test_only_its_owner_gives_an_address_back(tmp_path: Path) -> None:
    ledger = Ledger(tmp_path / "leases")
    ledger.choose(IPv4Network("10.0.0.0/30"))
    first = ledger.lease("a")
    ledger.release("a")
    assert ledger.lease("b") == first
    ledger.release("a")
    assert Ledger(tmp_path / "leases").leases == {"b": first}


@quick
def test_a_torn_line_was_never_a_lease(tmp_path: Path) -> None:
    ledger = Ledger(tmp_path / "leases")
    ledger.choose(IPv4Network("10.0.0.0/24"))
    ledger.lease("a")
    with (tmp_path / "leases").open("ab") as file:
        file.write(b'{"id": "b", "addr')
    again = Ledger(tmp_path / "leases")
    assert set(again.leases) == {"a"}
    again.lease("c")
    assert set(Ledger(tmp_path / "leases").leases) == {"a", "c"}


@quick
@pytest.mark.parametrize("egress", [False, True])
def test_only_egress_masquerades(egress: bool) -> None:
    text = rules("t", "br", IPv4Network("10.0.0.0/24"), egress=egress)
    assert ("masquerade" in text) == egress
    assert ("goto world; }" in text) == egress
