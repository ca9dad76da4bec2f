"""A control plane that is killed after any commit of any long operation: the next one brings it to its end, and everything can be deleted.

The events of each operation, in the order in which they happen, are the moments (reference/cubesandbox.md §3.3 has the phases). What is
stored by then is all that the next control plane has.
"""

from __future__ import annotations

import asyncio
from typing import Any

import pytest
from support.crashes import all_deleted, asked, ended, mortal, said
from support.waiting import eventually

from domain.templates.job import JobState

BUILDS = """
    job.created job.started job.noted:builder job.noted:config,digest job.noted:artifact_id artifact.claimed job.advanced:UNPACKING
    job.advanced:BUILDING_EXT4 artifact.built job.advanced:GENERATING_JSON artifact.owner-added template.artifact-bound replica.created
    job.advanced:DISTRIBUTING replica.distributing replica.distributed job.advanced:CREATING_TEMPLATE replica.preparing
    job.advanced:SNAPSHOTTING replica.ready job.advanced:REGISTERING template.settled
"""
MOMENTS = {
    "template.create": BUILDS,
    "template.redo": """
        job.created job.started job.noted:config,digest,egress_ca job.noted:artifact_id replica.redone replica.preparing replica.ready
        job.advanced:REGISTERING template.settled
    """,
    "template.commit": """
        job.created job.started job.advanced:BUILDING_EXT4 artifact.claimed artifact.placed job.noted:artifact_id,digest artifact.built
        artifact.owner-added template.artifact-bound replica.created job.advanced:DISTRIBUTING replica.distributing replica.distributed
        job.advanced:CREATING_TEMPLATE replica.preparing replica.ready job.advanced:REGISTERING template.settled
    """,
    "snapshot.create": "snapshot.created job.started artifact.owner-added snapshot.ready",
    "sandbox.rollback": "snapshot.rollback-begun job.started sandbox.rolled-back",
    "snapshot.delete": "snapshot.deleted snapshot.unplaced artifact.owner-dropped snapshot.removed",
    "template.delete": """
        template.delete-begun template.delete-requested replica.cleaning replica.removed artifact.owner-dropped artifact.cleanup-requested
        alias.released template.deleted artifact.unplaced artifact.deleted
    """,
}


def name_of(event: dict[str, Any]) -> str:
    """Its type, with the phase or the facts that tell it from others of that type."""
    data = event["data"]
    more = {"job.advanced": data.get("phase"), "job.noted": ",".join(sorted(data.get("facts", ())))}.get(event["type"])
    return event["type"] if more is None else f"{event['type']}:{more}"


@pytest.mark.parametrize("command", MOMENTS)
def test_what_a_killed_control_plane_had_begun_is_ended_by_the_next_one(server, run, command: str) -> None:
    async def test() -> None:
        async with mortal(server) as place:
            for number, moment in enumerate(MOMENTS[command].split()):
                with said(moment):
                    await survives(place, moment, f"command-{number}")

    async def survives(place, moment: str, command_id: str) -> None:
        body = await asked(place, command)
        place.control.dies_after(lambda event: name_of(event) == moment)
        first = asyncio.create_task(place.do(command, body, command_id=command_id))
        async with asyncio.timeout(10):
            await place.control.life.over.wait()
        first.cancel()
        await asyncio.gather(first, return_exceptions=True)
        await place.control_killed()
        told = await place.do(command, body, command_id=command_id)
        if "job_id" in told:
            job = await eventually(lambda: ended(place, told["job_id"]))
            assert (job.state, job.failure) == (JobState.READY, None)
        await all_deleted(place)

    run(test())
