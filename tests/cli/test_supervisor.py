"""What keeps processes alive: again and again, a little later each time, unless one says that this changes nothing."""

from __future__ import annotations

import asyncio
import os
import socket
from pathlib import Path

import pytest
import typer
from structlog.testing import capture_logs
from support.waiting import eventually, run

from agents import registry
from agents.__main__ import EXIT_NO_DRIVER
from strandline import drivers, ports, supervisor
from strandline.installation import HostError
from strandline.supervisor import Child, Supervisor

pytestmark = pytest.mark.quick


def dies_with(code: int, log: Path, says: str = "") -> Child:
    return Child("part", ["/bin/sh", "-c", f"printf '{says}' >&2; exit {code}"], log)


@pytest.mark.parametrize(("steady", "delays"), [(3600.0, [0.001, 0.002, 0.004, 0.004]), (-1.0, [0.001] * 4)], ids=["soon", "late"])
def test_what_dies_soon_waits_twice_as_long_each_time_up_to_a_bound(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, steady: float, delays: list[float]
) -> None:
    monkeypatch.setattr(supervisor, "FIRST_DELAY_S", 0.001)
    monkeypatch.setattr(supervisor, "LONGEST_DELAY_S", 0.004)
    monkeypatch.setattr(supervisor, "STEADY_S", steady)

    async def go() -> None:
        kept = Supervisor()
        child = dies_with(1, tmp_path / "log")
        await kept.start(child)
        await eventually(lambda: child.starts > 4)
        await kept.stop("part")

    with capture_logs() as logged:
        run(go())
    assert [line["again_in_s"] for line in logged if line["event"] == "child.died"][:4] == delays


def test_what_says_that_starting_it_again_changes_nothing_is_not_started_again(tmp_path: Path) -> None:
    async def go() -> Child:
        kept = Supervisor()
        await kept.start(dies_with(supervisor.GIVES_UP, tmp_path / "log", '{"event": "x"}\\nno driver works here\\nmend: sudo\\n'))
        child = await asyncio.wait_for(kept.gave_up(), 10)
        await kept.stop("part")
        return child

    child = run(go())
    assert (child.starts, child.pid) == (1, None)
    assert str(HostError(child)) == "part cannot work on this host: no driver works here\nmend: sudo"


def test_the_agents_code_for_it_is_the_one_that_the_supervisor_heeds() -> None:
    assert EXIT_NO_DRIVER == supervisor.GIVES_UP


def test_the_command_line_knows_the_drivers_that_there_are() -> None:
    assert set(drivers.DRIVERS) == set(registry.DRIVERS)
    for text in ("auto", "sim", "oci,process"):
        assert drivers.choice(text) == text
        assert registry.wanted(text)
    for text in ("", "kvm", "oci,kvm", "auto,oci"):
        with pytest.raises(typer.BadParameter):
            drivers.choice(text)
        with pytest.raises(registry.NoDriverError):
            registry.wanted(text)


def test_whose_a_port_is() -> None:
    with socket.socket() as mine:
        mine.bind(("127.0.0.1", 0))
        port = mine.getsockname()[1]
        assert not ports.listens(1, port)
        mine.listen()
        assert ports.taken(port)
        assert not ports.listens(1, port)
        assert ports.listens(os.getpid(), port)
    assert not ports.taken(port)


def test_a_connection_that_a_former_server_left_behind_does_not_take_its_port() -> None:
    with socket.socket() as server:
        server.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        server.bind(("127.0.0.1", 0))
        server.listen()
        port = server.getsockname()[1]
        client = socket.create_connection(("127.0.0.1", port))
        served, _ = server.accept()
    served.close()  # the server closes first, so that its end waits (TIME_WAIT)
    client.close()
    assert not ports.taken(port)
