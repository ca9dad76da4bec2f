"""Drivers and networks together: a sandbox in a namespace of the node's making is reached at its address."""

from __future__ import annotations

import shutil
import socket
from collections.abc import Iterator
from dataclasses import replace
from ipaddress import IPv4Address
from pathlib import Path

import pytest
from support import guests, rootfs
from support.benches import BWRAP, OCI, VM, Bench, Kind
from support.waiting import eventually, run

from agents.drivers import hostns
from agents.drivers.driver import ExecRequest, Handle, Limits, RuntimeFault, Spec
from agents.drivers.vm import VmDriver
from agents.host import reaper
from agents.network.netns import Attachment, BridgeNetwork
from agents.network.spoofing import hardware_of
from agents.storage import qcow2

pytestmark = pytest.mark.root


@pytest.mark.parametrize("kind", [OCI, BWRAP], ids=str)
def test_a_sandbox_is_reached_at_its_address_and_its_ports_are_seen(kind: Kind, network: BridgeNetwork, tmp_path: Path) -> None:
    if shutil.which(kind.program) is None or rootfs.BUSYBOX is None:
        pytest.skip(f"{kind.program} or busybox is not installed")
    reaper.become_subreaper()
    entered = hostns.enter(tmp_path)
    root = rootfs.make(tmp_path / "root")

    async def scenario() -> None:
        driver = kind.make(tmp_path / "driver")
        attached = await network.attach("sb-1")
        argv = ("nc", "-l", "-p", "8080", "-e", "/bin/echo", "hello")
        spec = Spec("sb-1", 0, root, argv, {}, tmp_path / "logs", limits=Limits(1, 128, 64), netns=attached.netns)
        handle = await driver.start(spec)

        async def listening() -> bool:
            return await driver.listening(handle) == {8080}

        await eventually(listening)
        address = await driver.exec(handle, ExecRequest(["ip", "-4", "addr", "show", "eth0"]))
        assert f"inet {attached.address}/22" in address.stdout.decode()
        with socket.create_connection((attached.address, 8080), timeout=5) as connection:
            assert connection.recv(100) == b"hello\n"
        await driver.destroy("sb-1")
        await network.detach("sb-1")
        await driver.close()

    try:
        run(scenario())
    finally:
        if entered:
            hostns.leave(tmp_path)


SERVE = "while :; do hostname | nc -l -p 8080; done"


@pytest.fixture
def machines(network: BridgeNetwork, tmp_path: Path) -> Iterator[Bench]:
    if rootfs.BUSYBOX is None:
        pytest.skip("busybox is not installed")
    guests.ready()
    reaper.become_subreaper()
    bench = Bench(VM, tmp_path, rootfs.make(tmp_path / "root"))

    async def clear() -> None:
        driver = await bench.again()
        for sandbox_id in await driver.list():
            await driver.destroy(sandbox_id)
        await driver.close()

    yield bench
    run(clear())


def wired(attached: Attachment) -> dict[str, object]:
    return {"netns": attached.netns, "address": attached.interface, "gateway": attached.gateway}


async def answers(attached: Attachment, name: str) -> None:
    """Whoever serves at that address is the sandbox of that name."""

    def heard() -> bool:
        try:
            with socket.create_connection((attached.address, 8080), timeout=1) as connection:
                return connection.recv(100) == f"{name}\n".encode()
        except OSError:
            return False

    await eventually(heard)


async def is_configured(bench: Bench, handle: Handle, attached: Attachment) -> None:
    assert f"inet {attached.interface}" in await bench.said(handle, "ip -4 addr show eth0")
    assert f"via {attached.gateway}" in await bench.said(handle, "ip route")


@pytest.mark.parametrize("waiting", [0, 1], ids=["cold", "waiting"])
def test_a_machine_has_its_address_and_each_copy_one_of_its_own(machines: Bench, network: BridgeNetwork, waiting: int) -> None:
    bench = machines
    bench.driver = VmDriver(bench.directory / "driver", guests.GUESTS, waiting=waiting)

    async def scenario() -> None:
        one, two = await network.attach("sb-1"), await network.attach("sb-2")
        first = await bench.start("/bin/sh", "-c", SERVE, hostname="sb-1", **wired(one))
        await answers(one, "sb-1")
        await is_configured(bench, first, one)
        assert await bench.driver.listening(first) == {8080}
        memory, onward = bench.directory / "memory", bench.directory / "onward.qcow2"
        memory.mkdir()
        qcow2.create(onward, bench.place("sb-1"))
        frozen = await bench.driver.snapshot(first, memory, onward)

        async def go_on(name: str, generation: int, attached: Attachment) -> None:
            root = bench.directory / f"{name}.{generation}.qcow2"
            qcow2.create(root, frozen)
            spec = bench.spec("/bin/sh", name=name, generation=generation, hostname=name, memory=memory, **wired(attached))
            await is_configured(bench, await bench.driver.start(replace(spec, root=root)), attached)
            await answers(attached, name)

        await go_on("sb-2", 1, two)
        await answers(one, "sb-1")
        if waiting:
            await eventually(lambda: {found.kind.memory for found in bench.driver._pool._waiting} >= {memory})
        await go_on("sb-1", 1, one)
        await answers(two, "sb-2")

    run(scenario())


def test_a_machine_without_a_network_has_no_address_even_if_its_memory_had_one(machines: Bench, network: BridgeNetwork) -> None:
    bench = machines

    async def scenario() -> None:
        first = await bench.start(**wired(await network.attach("sb-1")))
        memory, onward = bench.directory / "memory", bench.directory / "onward.qcow2"
        memory.mkdir()
        qcow2.create(onward, bench.place("sb-1"))
        frozen = await bench.driver.snapshot(first, memory, onward)
        root = bench.directory / "copy.qcow2"
        qcow2.create(root, frozen)
        copy = await bench.driver.start(replace(bench.spec("/bin/sh", name="sb-2", memory=memory), root=root))
        assert await bench.said(copy, "ip route") == ""

    run(scenario())


def test_a_machine_is_refused_a_network_that_is_not_there(machines: Bench) -> None:
    async def scenario() -> None:
        with pytest.raises(RuntimeFault) as refusal:
            await machines.start(netns=machines.directory / "none", address="100.64.0.2/22", gateway="100.64.0.1")
        assert refusal.value.code == "network.attach-failed"
        assert await machines.driver.list() == {}

    run(scenario())


def test_a_machine_that_takes_the_address_of_another_is_not_heard(machines: Bench, network: BridgeNetwork) -> None:
    bench = machines

    async def scenario() -> None:
        attached, others = await network.attach("sb-1"), await network.attach("sb-2")
        await network.detach("sb-2")  # or it would answer for itself, and sooner
        handle = await bench.start(**wired(attached))

        async def heard(words: str = "") -> bool:
            return (await bench.sh(handle, f"ping -c 1 -W 1 {words} {attached.gateway}")).code == 0

        await eventually(heard)
        await bench.said(handle, f"ip addr add {others.interface} dev eth0")
        assert not await heard(f"-I {others.address}")
        assert await heard(f"-I {attached.address}")
        own = await bench.said(handle, "cat /sys/class/net/eth0/address")
        await bench.said(handle, f"ip link set eth0 address {hardware_of(IPv4Address(others.address))}")
        assert not await heard()
        await bench.said(handle, f"ip link set eth0 address {own}")
        assert await heard()

    run(scenario())
