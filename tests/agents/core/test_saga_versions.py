"""An agent whose program was changed under an unfinished saga: it leaves alone what it does not know, and works on for the others."""

from __future__ import annotations

from dataclasses import replace

import pytest
from support.sabotage import Died, Sabotage
from support.waiting import eventually

from agents.provisioning import CREATE_SANDBOX
from agents.verbs import provision
from domain.nodes.orders import ReportKind, Verb


def another_program(monkeypatch, **more) -> None:
    monkeypatch.setattr(provision, "CREATE_SANDBOX", replace(CREATE_SANDBOX, version=2, **more))


async def dies_half_way(rig) -> str:
    """An agent that has made a root and no network. The sandbox."""
    sabotage = Sabotage(dies="network:before")
    async with rig.life(orderly=False) as node:
        sabotage.may_die(node)
        with pytest.raises(Died):
            await rig.up()
    return rig.sandbox()


def left_alone(rig) -> list:
    return [report for report in rig.reports if report.kind is ReportKind.STEP and report.error is not None]


def test_it_is_neither_done_nor_undone_and_ends_under_a_program_that_knows_it(rig, run, monkeypatch):
    """reference/miren-sandbox.md §11.30."""

    async def scenario():
        sandbox = await dies_half_way(rig)
        with monkeypatch.context() as changed:
            another_program(changed)
            for number in range(5):  # more often than an order may kill its agent
                rig.reports.clear()
                async with rig.life():
                    told = await eventually(lambda: left_alone(rig))
                    assert told[0].error.code == "order.incompatible"
                    assert told[0].error.details == {"steps": ["artifact", "root", "network"]}
                    assert [(step["step"], step["state"]) for step in told[0].body["steps"]][-1] == ("network", "started")
                    assert await rig.left() == {"roots": {sandbox}, "records": {sandbox}}
                    other = await rig.up(f"other-{number}")
                    assert (await rig.tell(Verb.SANDBOX_DESTROY, {"sandbox_id": other, "grace_s": 0})).kind is ReportKind.DONE
        async with rig.life():
            await eventually(lambda: rig.node.get(sandbox).condition == "running")

    run(scenario())


def test_a_program_that_resumes_older_versions_ends_it(rig, run, monkeypatch):
    async def scenario():
        sandbox = await dies_half_way(rig)
        another_program(monkeypatch, resumes=frozenset({1}))
        async with rig.life():
            await eventually(lambda: rig.node.get(sandbox).condition == "running")

    run(scenario())


def test_a_destroy_takes_down_what_nobody_goes_on_with(rig, run, monkeypatch):
    async def scenario():
        sandbox = await dies_half_way(rig)
        another_program(monkeypatch)
        async with rig.life():
            await eventually(lambda: left_alone(rig))
            assert (await rig.tell(Verb.SANDBOX_DESTROY, {"sandbox_id": sandbox, "grace_s": 0})).kind is ReportKind.DONE
            assert await rig.left() == {}
        async with rig.life():
            await eventually(lambda: not rig.node.memory.orders)
            assert await rig.left() == {}

    run(scenario())
