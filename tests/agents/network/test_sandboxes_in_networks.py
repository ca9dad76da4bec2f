"""Drivers and networks together: a sandbox in a namespace of the node's making is reached at its address."""

from __future__ import annotations

import shutil
import socket
from pathlib import Path

import pytest
from support import rootfs
from support.benches import BWRAP, OCI, Kind
from support.waiting import eventually, run

from agents.drivers import hostns
from agents.drivers.driver import ExecRequest, Limits, Spec
from agents.host import reaper
from agents.network.netns import BridgeNetwork

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
