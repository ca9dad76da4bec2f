"""A node whose machine loses its power: what its agent takes up again is told to end properly, whatever of the starts was on the disk.

A start of a sandbox does not wait for the disk (docs/adr/0021), so that each file of it may be missing, empty or torn afterwards, and the
journal may know less than the control plane. The bus and the control plane are other machines here, and go on.
"""

from __future__ import annotations

import asyncio
import json
import os
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from support import leftovers
from support.agents import NODE, AgentProcess, Installation
from support.household import ruled
from support.installation import compose_image
from support.remains import of_sandboxes, power_cut
from support.waiting import eventually, run

from agents.host import processes
from agents.journal import decode, encode
from agents.options import Options
from agents.purge import purge
from bus.client import Caller
from bus.connection import Connection
from bus.server import Server
from domain.kernel.ids import SYSTEM_PROJECT
from domain.nodes.node import Node
from domain.sandboxes.sandbox import Sandbox
from domain.sandboxes.spec import ArtifactRef
from handlers.plane import ControlPlane

pytestmark = [
    pytest.mark.root,
    pytest.mark.timeout(90),
    pytest.mark.skipif(os.geteuid() != 0, reason="needs root"),
    pytest.mark.skipif(shutil.which("bwrap") is None, reason="bubblewrap is not installed"),
]
NO_ARTIFACT = ArtifactRef(artifact_id="rfs-" + "0" * 24, sha256="0" * 64, size_bytes=1)
ANOTHER_BOOT = "00000000-1111-2222-3333-444444444444"


# ----------------------------------------------------------------------------------------- what is on the disk of a start


def whole(directory: Path) -> None:
    """All that its driver wrote down."""
    assert (directory / "handle.json").exists()


def missing(directory: Path) -> None:
    """Nothing of it."""
    shutil.rmtree(directory)


def empty(directory: Path) -> None:
    """Names without contents, as most file systems leave them."""
    for file in filter(Path.is_file, directory.iterdir()):
        os.truncate(file, 0)


def torn(directory: Path) -> None:
    """The first half of each file."""
    for file in filter(Path.is_file, directory.iterdir()):
        os.truncate(file, file.stat().st_size // 2)


DISK: dict[str, Callable[[Path], None]] = {"whole": whole, "missing": missing, "empty": empty, "torn": torn}


# -------------------------------------------------------------------------------------------------- what the journal knows


def everything(entries: list[Any], sandbox: str) -> Iterator[Any]:
    del sandbox
    yield from entries


def nothing(entries: list[Any], sandbox: str) -> Iterator[Any]:
    """Not that there ever was such a sandbox."""
    orders = _orders(entries, sandbox)
    yield from (entry for entry in entries if not _about(entry, sandbox, orders))


def no_end(entries: list[Any], sandbox: str) -> Iterator[Any]:
    """That it was being started, and not that it runs: the control plane was told, and the disk was not."""
    orders, ended = _orders(entries, sandbox), False
    for entry in entries:
        ended = ended or (entry["k"] == "box" and entry["box"]["id"] == sandbox and "handle" in entry["box"])
        if not (ended and _about(entry, sandbox, orders)):
            yield entry


def _orders(entries: list[Any], sandbox: str) -> set[str]:
    return {entry["order"]["id"] for entry in entries if entry["k"] == "order" and entry["order"]["body"].get("sandbox_id") == sandbox}


def _about(entry: Any, sandbox: str, orders: set[str]) -> bool:
    names = {entry.get("id", ""), entry.get("order", {}).get("id", ""), entry.get("box", {}).get("id", "")}
    return bool(names & {sandbox, *orders}) or any(name.startswith(f"{order}:") for name in names for order in orders)


KNOWN: dict[str, Callable[[list[Any], str], Iterator[Any]]] = {"everything": everything, "nothing": nothing, "no end": no_end}


def lose_power(node: Path, sandboxes: dict[tuple[str, str], str]) -> None:
    """Everything ends, and each sandbox is as its key says, in the journal and on the disk. The machine then starts as another boot."""
    power_cut(node)
    journal = node / "journal" / "journal"
    entries = [entry for entry, _ in decode(journal.read_bytes())]
    for (known, disk), sandbox in sandboxes.items():
        entries = list(KNOWN[known](entries, sandbox))
        DISK[disk](node / "drivers" / "process" / sandbox)
    lines = b"".join(map(encode, entries)).replace(processes.boot_id().encode(), ANOTHER_BOOT.encode())
    journal.write_bytes(b"".join(map(encode, (json.loads(line[9:]) for line in lines.splitlines()))) + b"00ab torn" + bytes(4096))
    for file in (node / "drivers" / "process").glob("*/handle.json"):
        file.write_text(file.read_text().replace(processes.boot_id(), ANOTHER_BOOT))


# -------------------------------------------------------------------------------------------------------------- what is told


class Told:
    """What the control plane is asked, and what it knows."""

    def __init__(self, nc: Connection, plane: ControlPlane) -> None:
        self._caller = Caller(nc)
        self._control = plane.control
        self.template = ""

    async def do(self, name: str, **body: Any) -> dict[str, Any]:
        return dict((await self._caller.command("default", name, body))["result"])

    async def create(self, wait_s: int = 20) -> str:
        return str((await self.do("sandbox.create", template=self.template, wait_s=wait_s))["sandbox_id"])

    async def state(self, sandbox: str) -> tuple[str, str | None]:
        found = (await self._control.store.load(Sandbox, "default", sandbox)).aggregate
        return found.state.value, found.reason

    async def becomes(self, sandbox: str, *wanted: str | None) -> None:
        async def so() -> bool:
            return await self.state(sandbox) == wanted

        await eventually(so)

    async def another_boot(self, before: str = "") -> str:
        """Of the agent, once it has said so."""

        async def seen() -> str:
            found = await self._control.find(Node, SYSTEM_PROJECT, NODE)
            return "" if found is None or found.boot == before or not self._control.fleet.healthy_nodes() else found.boot

        return await eventually(seen, within=20)


async def some_sandboxes(told: Told, installation: Installation, image: str) -> dict[tuple[str, str], str]:
    """One that runs for each way in which it may be lost."""
    async with AgentProcess(installation, "process"):
        await told.another_boot()
        told.template = (await told.do("template.create", image=image, cmd=["sleep", "1000"], wait_s=30))["template_id"]
        ways = [(known, disk) for known in KNOWN for disk in DISK]
        return dict(zip(ways, await asyncio.gather(*(told.create() for _ in ways)), strict=True))


async def one_half_way(told: Told, installation: Installation) -> str:
    """Its program was started, and nobody knows."""
    before = await told.another_boot()
    async with AgentProcess(installation, "process", crash_at="start:after") as dying:
        await told.another_boot(before)
        begun = await told.create(wait_s=0)
        await dying.ended()
        return begun


def test_what_a_power_cut_left_of_sandboxes_is_told_to_end_and_the_host_is_clean(server: Server, tmp_path: Path) -> None:
    image, directory = compose_image(tmp_path / "image"), tmp_path / "state"
    node = directory / "nodes" / NODE

    async def scenario() -> None:
        async with ruled(server, directory, NODE) as (nc, plane):
            told, installation = Told(nc, plane), Installation(directory, nc, NO_ARTIFACT)
            sandboxes = await some_sandboxes(told, installation, image)
            begun = await one_half_way(told, installation)
            lose_power(node, sandboxes)
            assert {await told.state(sandbox) for sandbox in sandboxes.values()} == {("RUNNING", None)}, "nobody knows yet"
            async with AgentProcess(installation, "process") as last:
                for sandbox in sandboxes.values():
                    await told.becomes(sandbox, "DEAD", "node_lost")
                await told.becomes(begun, "RUNNING", None)  # it never was: the lane had its order still, which began anew
                await told.do("sandbox.delete", sandbox_id=begun, wait_s=20)
                await told.do("sandbox.delete", sandbox_id=await told.create(), wait_s=20)
                await eventually(lambda: not list((node / "logs").iterdir()))
                await last.stop()

    try:
        run(scenario())
        assert of_sandboxes(node) == []
        for part in ("drivers/process", "storage/roots", "logs"):
            assert [path.name for path in (node / part).iterdir() if path.name.startswith("sb-")] == [], part
    finally:
        leftovers.remember(directory)
        run(purge(Options(directory, NODE)))
