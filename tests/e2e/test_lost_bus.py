"""The bus dies or stops in the middle of one command: an answer or a refusal worth repeating, and the same command id acts once."""

from __future__ import annotations

import asyncio
import base64
import json
import os
import signal
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from support import truth
from support.installation import Running, compose_image, up
from support.killing import kill, pid_of
from support.patient import Patient
from support.waiting import eventually, run

pytestmark = [pytest.mark.slow, pytest.mark.timeout(120)]


@pytest.fixture(scope="module")
def running(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Running]:
    with up(tmp_path_factory.mktemp("lost") / "state", "--driver", "process") as started:
        yield started


@pytest.fixture(scope="module")
def template(running: Running, tmp_path_factory: pytest.TempPathFactory) -> str:
    image = compose_image(tmp_path_factory.mktemp("image") / "layout")

    async def make() -> str:
        async with Patient.connect(running.dir, "template") as p:
            made = await p.cmd("template.create", image=image, alias="base", memory_mb=64, wait_s=20)
            await p.job(made["job_id"])
            return made["template_id"]

    return run(make())


async def seen(p: Patient, event: str) -> asyncio.Event:
    """Set when the first event of that type is on the bus."""
    there = asyncio.Event()

    async def look(message: Any) -> None:
        if any(e["type"] == event for e in json.loads(message.data)["events"]):
            there.set()

    await p.nc.subscribe("strand.evt.>", cb=look)
    await p.nc.flush()
    return there


async def acted_once(running: Running, p: Patient, command: str) -> dict[str, Any]:
    """The answer of a command, which is in the log once, and stays the same."""
    answer = await p.again(command)
    assert (await p.again(command))["id"] == answer["id"]
    log = await truth.whole_log(running.dir)
    truth.check_chains(log)
    created = [commit for commit in log if commit.command == command and any(e["type"].endswith(".created") for e in commit.events)]
    assert len({(commit.type, commit.id) for commit in created}) == len(created)
    assert [commit.id for commit in created if commit.type == "sandbox"] == [answer["id"]]
    return answer


@pytest.mark.parametrize("event", ["sandbox.created", "provisioning.begun", "provisioning.stepped", "sandbox.started"])
def test_a_command_whose_bus_is_killed_half_way_acts_once(running: Running, template: str, event: str) -> None:
    async def scenario() -> None:
        command = f"killed-at-{event.replace('.', '-')}"
        async with Patient.connect(running.dir) as p:
            moment = await seen(p, event)
            asked = asyncio.create_task(p.cmd("sandbox.create", command, template=template, wait_s=10))
            await moment.wait()
            await kill(running.dir, "nats")
            box = (await asked)["sandbox_id"]
            await p.sandbox(box, "RUNNING")
            assert await p.sh(box, "echo alive") == "alive\n"
            answer = await acted_once(running, p, command)
            assert answer["result"]["sandbox_id"] == box
            await p.cmd("sandbox.delete", sandbox_id=box, wait_s=10)
            await p.sandbox(box, "DEAD")

    run(scenario())


@pytest.mark.parametrize("part", ["nats", "control"])
def test_an_exec_that_runs_while_a_part_dies_runs_once_and_is_answered(running: Running, template: str, part: str) -> None:
    async def scenario() -> None:
        async with Patient.connect(running.dir) as p:
            box = (await p.cmd("sandbox.create", template=template, wait_s=10))["sandbox_id"]
            await p.sandbox(box, "RUNNING")
            [root] = list((running.dir / "nodes" / "node-1" / "storage").rglob(f"{box}/root"))
            os.mkfifo(root / "gate")
            script = "echo once >> /acts; read word < /gate; echo $word"
            body = {"sandbox_id": box, "cmd": ["/bin/sh", "-c", script], "timeout_s": 30}
            asked = asyncio.create_task(p.cmd("sandbox.exec", f"exec-{part}", **body))
            await eventually((root / "acts").exists)
            await kill(running.dir, part)
            await asyncio.to_thread((root / "gate").write_text, "open\n")
            assert base64.b64decode((await asked)["stdout"]) == b"open\n"
            assert (root / "acts").read_text() == "once\n"
            await p.cmd("sandbox.delete", sandbox_id=box, wait_s=10)
            await p.sandbox(box, "DEAD")

    run(scenario())


def test_a_command_into_a_bus_that_is_just_dying_acts_once(running: Running, template: str) -> None:
    async def scenario() -> None:
        async with Patient.connect(running.dir) as p:
            dying = asyncio.create_task(kill(running.dir, "nats"))
            box = (await p.cmd("sandbox.create", "into-the-dark", template=template, wait_s=10))["sandbox_id"]
            await dying
            await p.sandbox(box, "RUNNING")
            await acted_once(running, p, "into-the-dark")
            await p.cmd("sandbox.delete", sandbox_id=box, wait_s=10)
            await p.sandbox(box, "DEAD")

    run(scenario())


@pytest.mark.parametrize("event", [None, "sandbox.created"])
def test_a_bus_that_stands_still_costs_a_refusal_and_nothing_else(running: Running, template: str, event: str | None) -> None:
    async def scenario() -> None:
        command = f"slow-{event is None}".lower()
        async with Patient.connect(running.dir) as p:
            moment = await seen(p, event or "")
            nats = pid_of(running.dir, "nats")
            assert nats is not None
            if event is None:
                os.kill(nats, signal.SIGSTOP)
            asked = asyncio.create_task(p.cmd("sandbox.create", command, template=template, wait_s=0))
            if event is not None:
                await moment.wait()
                os.kill(nats, signal.SIGSTOP)
            try:
                delete = asyncio.create_task(p.cmd("sandbox.set-ttl", sandbox_id="sb-" + "a" * 20, ttl_s=1))
                await eventually(lambda: len(p.refused) >= 2, within=40)
            finally:
                os.kill(nats, signal.SIGCONT)
            assert {(refused.code, refused.retryable) for refused in p.refused} == {("bus.unavailable", True)}
            with pytest.raises(Exception, match="no sandbox"):
                await delete
            box = (await asked)["sandbox_id"]
            await p.sandbox(box, "RUNNING")
            assert pid_of(running.dir, "nats") == nats, "a slow bus is no dead bus"
            await acted_once(running, p, command)
            await p.cmd("sandbox.delete", sandbox_id=box, wait_s=10)
            await p.sandbox(box, "DEAD")

    run(scenario())


def test_the_log_is_intact_after_all_that(running: Running) -> None:
    async def scenario() -> None:
        log = await truth.whole_log(running.dir)
        truth.check_chains(log)
        await truth.check_views(running.dir)

    run(scenario())
    assert Path(running.dir / "connect.json").exists()
