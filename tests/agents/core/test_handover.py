"""What one agent process hands over to the next: deadlines go on, and nothing is asked for twice (miren-sandbox.md §2.4b, §3.6)."""

from __future__ import annotations

import asyncio
from datetime import timedelta
from typing import Any

from support.waiting import run

from agents.node import Settings
from domain.nodes.orders import ReportKind, Verb


def test_a_process_is_asked_to_end_once_and_its_time_goes_on_over_a_restart(rig, monkeypatch) -> None:
    """Scenario 20."""
    graces: list[float] = []

    async def scenario() -> None:
        rig.knobs.stop_s = 1000
        async with rig.life(orderly=False):
            sandbox = await rig.up()
            order = rig.order(Verb.SANDBOX_DESTROY, {"sandbox_id": sandbox, "grace_s": 60})
            draining = asyncio.create_task(rig.send(order))
            await rig.eventually(lambda: rig.node.get(sandbox).stop_requested_at == rig.now)
            draining.cancel()
        rig.now += timedelta(seconds=59.9)
        async with rig.life(resume=False) as node:
            given, lines = rig.driver.stop, []
            node.runtime_line = lambda _, text: lines.append(text)

            async def stop(handle: Any, grace_s: float) -> Any:
                graces.append(grace_s)
                return await given(handle, grace_s)

            monkeypatch.setattr(rig.driver, "stop", stop)
            rig.work.resume()
            await rig.eventually(lambda: rig.ends_of(order))
            assert (rig.ends_of(order)[0].kind, rig.ends_of(order)[0].body["exit_code"]) == (ReportKind.DONE, 137)
            assert graces == [0], "the first time it was asked by the agent before"
            assert [line for line in lines if line.startswith("killed")], "whose it is can read why it was killed"
            assert await rig.left() == {}

    run(scenario())


def test_the_wait_for_a_port_ends_when_it_would_have_over_a_restart_too(rig) -> None:
    async def scenario() -> None:
        order = rig.order(Verb.SANDBOX_PROVISION, rig.provision(probe_port=80), deadline_s=None)
        async with rig.life(orderly=False) as node:
            node.settings = Settings(port_wait_s=500)
            waiting = asyncio.create_task(rig.send(order))
            await rig.eventually(lambda: "ready" in getattr(node.memory.orders.get(order.id), "touched", ()))
            waiting.cancel()
        rig.now += timedelta(seconds=500)
        async with rig.life(resume=False) as node:
            node.settings = Settings(port_wait_s=500)
            rig.work.resume()
            await rig.eventually(lambda: rig.ends_of(order))
            assert rig.ends_of(order)[0].error.message == "nothing listens on port 80 after 500 s"
            assert await rig.left() == {}

    run(scenario())


def test_whoever_asks_again_for_what_runs_is_told_so_also_when_the_answer_is_not_kept(rig) -> None:
    """Scenario 28: the log's PENDING is mended by whoever knows, and nothing is started again."""

    async def scenario() -> None:
        async with rig.life() as node:
            order = rig.order(Verb.SANDBOX_PROVISION, rig.provision(ports=[80]))
            first = await rig.send(order)
            node.memory.answers.clear()
            again = await rig.send(order)
            assert again.id != first.id, "the bus must not take it for the one that it has"
            same = ("driver", "address", "generation")
            assert [again.body[name] for name in same] == [first.body[name] for name in same]
            assert len(await rig.driver.list()) == 1
            await rig.tell(Verb.SANDBOX_DESTROY, {"sandbox_id": rig.sandbox(), "grace_s": 0})
            node.memory.answers.clear()
            told = len(rig.ends_of(order))
            await rig.send(order)
            assert len(rig.ends_of(order)) == told, "what is gone does not run"

    run(scenario())
