"""Starts that are made before anybody asks for them (docs/adr/0023): who gets them, and what becomes of those that nobody wants."""

from __future__ import annotations

import asyncio
import base64
import os
import threading
from typing import Any

import pytest
from support.local_node import SNAPSHOT
from support.waiting import eventually

from agents.drivers.launchers import Bubblewrap
from agents.drivers.process import ProcessDriver
from domain.nodes.orders import ReportKind, Verb

pytestmark = pytest.mark.root


@pytest.fixture
def stocked(rig: Any) -> Any:
    """A node that holds one start of each kind, of real processes."""
    rig.starts_waiting = 1
    rig._driver = lambda directory: ProcessDriver(directory, Bubblewrap())
    return rig


async def waiting(rig: Any) -> str:
    """The name of what is held, once there is something."""
    [name] = await eventually(lambda: [found.name for kind in rig.node.stock._waiting.values() for found in kind])
    return str(name)


async def said(rig: Any, sandbox: str, script: str) -> str:
    done = await rig.tell(Verb.SANDBOX_EXEC, {"sandbox_id": sandbox, "cmd": ["/bin/sh", "-c", script]})
    assert done.body["exit_code"] == 0, done
    return base64.b64decode(done.body["stdout"]).decode().strip()


def test_the_second_sandbox_of_a_kind_is_one_that_was_held(stocked, run):
    async def scenario():
        async with stocked.life() as node:
            await stocked.up("one")
            held = await waiting(stocked)
            os.mkfifo(node.directory / "storage" / "roots" / held / "seen")  # goes along with what is held
            two = await stocked.up("two")
            assert (node.directory / "storage" / "roots" / two / "seen").exists()
            assert await said(stocked, two, "cat /proc/sys/kernel/hostname; pwd") == f"{two}\n/"
            assert await waiting(stocked) != held, "the stock is filled up again"
            for sandbox in (stocked.sandbox("one"), two):
                await stocked.tell(Verb.SANDBOX_DESTROY, {"sandbox_id": sandbox, "grace_s": 0})
        assert await stocked.left() == {}

    run(scenario())


def test_one_that_differs_in_anything_is_made_for_itself(stocked, run):
    async def scenario():
        async with stocked.life():
            await stocked.up("one")
            held = await waiting(stocked)
            other = await stocked.up("two", env={"COLOUR": "red"})
            assert await said(stocked, other, "tr '\\0' '\\n' < /proc/2/environ | grep COLOUR") == "COLOUR=red"
            assert held in stocked.node.stock.names
            for sandbox in (stocked.sandbox("one"), other):
                await stocked.tell(Verb.SANDBOX_DESTROY, {"sandbox_id": sandbox, "grace_s": 0})

    run(scenario())


def test_what_is_held_is_in_nobodys_way(stocked, run):
    """The artifact and the snapshot under it are let go at once."""

    async def scenario():
        async with stocked.life() as node:
            one = await stocked.up("one")
            taken = await stocked.tell(Verb.SANDBOX_SNAPSHOT, {"sandbox_id": one, "snapshot_id": SNAPSHOT, "generation": 0})
            assert taken.kind is ReportKind.DONE
            await stocked.tell(Verb.SANDBOX_PROVISION, stocked.provision("two", snapshot_id=SNAPSHOT))
            await eventually(lambda: len(node.stock.names) == 2)
            for name in ("one", "two"):
                await stocked.tell(Verb.SANDBOX_DESTROY, {"sandbox_id": stocked.sandbox(name), "grace_s": 0})
            removed = await stocked.tell(Verb.SNAPSHOT_REMOVE, {"snapshot_id": SNAPSHOT})
            assert removed.kind is ReportKind.DONE
            assert SNAPSHOT not in (await node.roots.list()).snapshots
            removed = await stocked.tell(Verb.ARTIFACT_REMOVE, {"artifact_id": stocked.artifact.artifact_id})
            assert removed.kind is ReportKind.DONE, removed
            assert node.stock.names == frozenset()
            assert await stocked.left() == {}

    run(scenario())


def test_nothing_is_left_of_a_start_that_was_being_made_when_the_agent_ended(stocked, run):
    """A thread that makes part of it goes on when whoever waits for it is cancelled."""
    begun, may_go_on, made = threading.Event(), threading.Event(), threading.Event()

    async def scenario():
        async with stocked.life() as node:
            await stocked.up("one")
            await stocked.tell(Verb.SANDBOX_DESTROY, {"sandbox_id": stocked.sandbox("one"), "grace_s": 0})
            attach = node.network.attach

            def slowly(name: str) -> None:
                begun.set()
                may_go_on.wait()
                asyncio.run(attach(name))
                made.set()

            node.network.attach = lambda name: asyncio.to_thread(slowly, name)
            await eventually(begun.is_set)
            asyncio.get_running_loop().call_later(0.2, may_go_on.set)  # while it is being cancelled
        await eventually(made.is_set)
        assert await stocked.left() == {}

    run(scenario())


def test_what_was_held_is_an_orphan_to_the_next_agent(stocked, run):
    async def scenario():
        async with stocked.life(orderly=False):
            await stocked.up("one")
            await waiting(stocked)
        stocked.starts_waiting = 0
        async with stocked.life():
            assert set(await stocked.driver.list()) == {stocked.sandbox("one")}
            await stocked.tell(Verb.SANDBOX_DESTROY, {"sandbox_id": stocked.sandbox("one"), "grace_s": 0})
            assert await stocked.left() == {}

    run(scenario())


def test_one_that_was_held_and_has_died_costs_nobody_a_sandbox(stocked, run):
    async def scenario():
        async with stocked.life() as node:
            await stocked.up("one")
            held = await waiting(stocked)
            await stocked.driver.destroy(held)
            two = await stocked.up("two")
            assert await said(stocked, two, "echo alive") == "alive"
            for sandbox in (stocked.sandbox("one"), two):
                await stocked.tell(Verb.SANDBOX_DESTROY, {"sandbox_id": sandbox, "grace_s": 0})
        assert await stocked.left() == {}
        assert node.stock.names == frozenset()

    run(scenario())


def test_a_creation_that_is_given_up_after_it_took_from_stock_leaves_nothing(stocked, run):
    async def scenario():
        async with stocked.life():
            await stocked.up("one")
            await waiting(stocked)
            stocked.leases.give = _broken
            failed = await stocked.tell(Verb.SANDBOX_PROVISION, stocked.provision("two"))
            assert failed.kind is ReportKind.FAILED
            await stocked.tell(Verb.SANDBOX_DESTROY, {"sandbox_id": stocked.sandbox("one"), "grace_s": 0})
        assert await stocked.left() == {}

    run(scenario())


async def _broken(*_: str) -> None:
    raise OSError(5, "told to fail")


def test_no_more_kinds_are_held_than_were_asked_for_last(stocked, run):
    async def scenario():
        async with stocked.life() as node:
            for number in range(6):
                await stocked.up(f"n{number}", env={"N": str(number)})

            def kinds() -> set[str]:
                return {found.model.spec.recipe.env["N"] for kind in node.stock._waiting.values() for found in kind}

            await eventually(lambda: kinds() == {"2", "3", "4", "5"})
            async with asyncio.TaskGroup() as group:
                for number in range(6):
                    sandbox = stocked.sandbox(f"n{number}")
                    group.create_task(stocked.tell(Verb.SANDBOX_DESTROY, {"sandbox_id": sandbox, "grace_s": 0}))
        assert await stocked.left() == {}

    run(scenario())
