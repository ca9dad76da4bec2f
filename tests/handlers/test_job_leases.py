"""A job lives as long as it is heard to move, and no longer (reference/cubesandbox.md §12 "Timers")."""

from __future__ import annotations

import asyncio
from datetime import UTC, datetime, timedelta

import pytest
from support.waiting import eventually

from domain.kernel.ids import SYSTEM_PROJECT
from domain.nodes.orders import ReportKind, Verb
from domain.templates.artifact import Artifact, ArtifactState
from domain.templates.job import Job, JobState
from domain.templates.template import Template, TemplateState
from handlers.control import Deadlines

pytestmark = pytest.mark.quick

QUICK = Deadlines(watchdog_s=0.05)


async def pulling(place, **body) -> tuple[str, str]:
    """The job and the template of a build that its node has begun and does not end."""
    place.node.hold = lambda order: order.verb == Verb.ARTIFACT_BUILD
    made = await place.do("template.create", {"image": "oci:/images/demo", **body})
    await eventually(lambda: place.node.did(Verb.ARTIFACT_BUILD))
    return made["job_id"], made["template_id"]


def passes(place, minutes: float) -> None:
    place.plane.control.clock = lambda: datetime.now(UTC) + timedelta(minutes=minutes)


async def pulled(place, number: int) -> None:
    """The node says that it pulls; hardly more than last time."""
    body = {"phase": "PULLING", "fraction": 0.1, "bytes": 1000 + number, "total_bytes": 1_000_000, "layers": 0, "total_layers": 3}
    await place.node.tell(place.node.did(Verb.ARTIFACT_BUILD)[0], ReportKind.PROGRESS, body, suffix=f":{number}")


async def renewals(place, job: str) -> int:
    commits = await place.plane.control.store.read("default", "job", job)
    return sum(event["type"] == "job.lease-renewed" for commit in commits for event in commit.events)


async def lease_left(place, job: str) -> timedelta:
    return (await place.get(Job, job)).lease_until - place.plane.control.clock()


def test_a_pull_of_forty_minutes_that_moves_comes_to_its_end(at) -> None:
    async def test(place) -> None:
        job, template = await pulling(place)
        waiting = (await place.do("template.create", {"image": "oci:/images/demo", "memory_mb": 64}))["job_id"]
        await eventually(lambda: is_running(place, waiting))  # its lease begins with it: at the same time as the other's
        for minute in range(1, 41):
            passes(place, minute)
            await pulled(place, minute)
            await eventually(lambda: is_fresh(place, job))
            await eventually(lambda: is_fresh(place, waiting))
        assert 6 <= await renewals(place, job) <= 10, "a third of the lease apart, however many reports there are"
        order = place.node.did(Verb.ARTIFACT_BUILD)[0]
        place.node.hold = lambda order: False
        await place.node.answer(order)
        for each in (job, waiting):
            await eventually(lambda each=each: has_ended(place, each))
            assert (await place.get(Job, each)).state is JobState.READY
        assert (await place.get(Template, template)).state is TemplateState.READY

    async def is_running(place, job: str) -> bool:
        return (await place.get(Job, job)).state is JobState.RUNNING

    async def is_fresh(place, job: str) -> bool:
        return await lease_left(place, job) >= timedelta(minutes=9)

    at(test, QUICK)


def test_a_pull_that_falls_silent_expires_with_its_template_and_its_artifact(at) -> None:
    async def test(place) -> None:
        job, template = await pulling(place)
        await pulled(place, 1)
        passes(place, 14)
        await asyncio.gather(*(pulled(place, number) for number in range(2, 40)))
        await eventually(lambda: all_taken(place))
        assert await renewals(place, job) == 1, "forty reports at a time are one sign of life"
        passes(place, 28)
        assert (await place.get(Job, job)).state is JobState.RUNNING
        passes(place, 29.5)
        await eventually(lambda: has_ended(place, job))
        ended = await place.get(Job, job)
        assert (ended.state, ended.failure.code) == (JobState.FAILED, "job.expired")
        assert (await place.get(Template, template)).state is TemplateState.FAILED
        await eventually(lambda: artifact_failed(place, ended.facts["artifact_id"]))

    async def all_taken(place) -> bool:
        return (await place.nc.jetstream().stream_info("REPORTS")).state.messages == 0

    async def artifact_failed(place, artifact: str) -> bool:
        return (await place.get(Artifact, artifact, SYSTEM_PROJECT)).state is ArtifactState.FAILED

    at(test, QUICK)


async def has_ended(place, job: str) -> bool:
    return not (await place.get(Job, job)).active
