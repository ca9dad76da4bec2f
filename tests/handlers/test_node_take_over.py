"""A node that is killed with any order of any long operation in hand, before or after it did it: its next process gets the order again.

Or there is no next one: then the job ends with its lease, and everything can be deleted once the node is given up. What the real agent has
on its host then is in tests/agents/core.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from support.crashes import MortalPlace, all_deleted, asked, ended, mortal, said
from support.waiting import eventually

from domain.nodes.orders import Order, ReportKind, Verb
from domain.templates.job import Job, JobState

ORDERS = {
    "template.create": (Verb.IMAGE_RESOLVE, Verb.ARTIFACT_BUILD, Verb.REPLICA_DISTRIBUTE, Verb.REPLICA_PREPARE),
    "template.redo": (Verb.REPLICA_PREPARE,),
    "template.commit": (Verb.SANDBOX_COMMIT, Verb.ARTIFACT_BUILD, Verb.REPLICA_DISTRIBUTE, Verb.REPLICA_PREPARE),
    "snapshot.create": (Verb.SANDBOX_SNAPSHOT,),
    "sandbox.rollback": (Verb.SANDBOX_ROLLBACK,),
    "snapshot.delete": (Verb.SNAPSHOT_REMOVE,),
    "template.delete": (Verb.REPLICA_REMOVE, Verb.ARTIFACT_REMOVE),
}
LONG = [command for command in ORDERS if not command.endswith(".delete")]


def dies_before(place: MortalPlace, verb: Verb) -> None:
    """With the order in hand, and nothing done."""

    def hold(order: Order) -> bool:
        if order.verb == verb:
            place.node_life.end()
        return order.verb == verb

    place.node.hold = hold


def dies_after(place: MortalPlace, verb: Verb) -> None:
    """Done, and nobody told."""
    tell = place.node.tell

    async def told(order: Order, kind: ReportKind, *more, **named) -> None:
        if order.verb == verb and kind is ReportKind.DONE:
            place.node_life.end()
        else:
            await tell(order, kind, *more, **named)

    place.node.tell = told


def with_each_order_of(server: Any, run: Any, command: str, scenario: Callable[[MortalPlace, Verb], Awaitable[None]]) -> None:
    """One after the other, at one control plane whose node can be killed."""

    async def test() -> None:
        async with mortal(server) as place:
            for verb in ORDERS[command]:
                with said(verb):
                    await scenario(place, verb)

    run(test())


@pytest.mark.parametrize("dies", [dies_before, dies_after])
@pytest.mark.parametrize("command", ORDERS)
def test_what_a_killed_node_had_in_hand_is_done_by_its_next_process(server, run, command: str, dies) -> None:
    async def survives(place: MortalPlace, verb: Verb) -> None:
        body = await asked(place, command)
        dies(place, verb)
        told = await place.do(command, body)
        await died(place)
        await place.node_started()
        if "job_id" in told:
            job = await eventually(lambda: ended(place, told["job_id"]))
            assert (job.state, job.failure) == (JobState.READY, None)
        await all_deleted(place)

    with_each_order_of(server, run, command, survives)


@pytest.mark.parametrize("command", LONG)
def test_the_job_of_a_node_that_never_comes_back_ends_and_everything_can_be_deleted(server, run, command: str) -> None:
    async def is_given_up(place: MortalPlace, verb: Verb) -> None:
        body = await asked(place, command)
        dies_before(place, verb)
        job = (await place.do(command, body))["job_id"]
        await died(place)
        place.plane.control.clock = lambda: datetime.now(UTC) + timedelta(minutes=16)
        found: Job = await eventually(lambda: ended(place, job))
        assert found.state is JobState.FAILED
        await place.do("node.evict", {"node_id": "node-1"})
        await all_deleted(place)
        place.plane.control.clock = lambda: datetime.now(UTC)
        await place.do("node.enroll", {"node_id": "node-1"})
        await place.node_started()
        await eventually(lambda: place.plane.control.fleet.nodes["node-1"].storage_mode == "healthy")

    with_each_order_of(server, run, command, is_given_up)


async def died(place: MortalPlace) -> None:
    await eventually(place.node_life.over.is_set)
    await place.node_killed()
