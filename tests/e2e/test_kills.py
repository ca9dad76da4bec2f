"""A whole day's work while parts of the installation are killed: the results are right, nothing is done twice, nothing is left over."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest
from support import truth
from support.day import Day, a_day
from support.installation import Running, compose_image, up
from support.killing import Killer
from support.patient import Patient
from support.remains import remains
from support.waiting import eventually, run

from agents.crashpoints import VARIABLE
from bus.connection import connect_from
from domain.nodes.orders import Verb

pytestmark = [pytest.mark.slow, pytest.mark.timeout(180)]
EVERYTHING = ["control", "projector", "node-1", "nats"]


@pytest.fixture(scope="module")
def image(tmp_path_factory: pytest.TempPathFactory) -> str:
    return compose_image(tmp_path_factory.mktemp("image") / "layout")


@pytest.mark.parametrize("part", EVERYTHING)
def test_a_day_survives_the_death_of_one_part_again_and_again(tmp_path: Path, image: str, part: str) -> None:
    live_through(tmp_path / "state", image, "process", [part], seed=EVERYTHING.index(part))


def test_a_day_survives_the_death_of_every_part_in_turn(tmp_path: Path, image: str) -> None:
    """With the better driver where there are the rights for it; each part alone dies under the other one above."""
    live_through(tmp_path / "state", image, "oci" if os.geteuid() == 0 else "process", EVERYTHING, seed=7)


VERBS = (
    *(Verb.IMAGE_RESOLVE, Verb.ARTIFACT_BUILD, Verb.ARTIFACT_REMOVE, Verb.REPLICA_DISTRIBUTE, Verb.REPLICA_PREPARE, Verb.REPLICA_REMOVE),
    *(Verb.SANDBOX_SNAPSHOT, Verb.SANDBOX_ROLLBACK, Verb.SANDBOX_COMMIT, Verb.SNAPSHOT_REMOVE),
)
"""The orders of templates and snapshots; a sandbox's own are in ``tests/agents/core/test_kill.py``, step by step."""
POINTS = {
    "before": [*(f"{verb}:before" for verb in VERBS), "pulling:told"],
    "after": [*(f"{verb}:after" for verb in VERBS), "building_ext4:told"],
}
"""Where a node dies: in one order twice at most, for one that has begun three times without an end is taken for the reason."""


@pytest.mark.parametrize("where", POINTS)
def test_a_day_survives_the_death_of_the_node_before_and_after_each_kind_of_order_and_in_a_build(
    tmp_path: Path, image: str, where: str
) -> None:
    directory = tmp_path / "state"
    with up(directory, "--driver", "process", env={VARIABLE: ",".join(POINTS[where])}) as running:
        run(the_day_of_a_node(running, image))
        assert set((directory / "nodes" / "node-1" / "crashed").read_text().split()) == set(POINTS[where])
    assert remains(directory) == []


async def the_day_of_a_node(running: Running, image: str) -> None:
    async with Patient.connect(running.dir, prefix="day") as p:
        day = await a_day(p, image, running.dir)
        await nothing_is_open(running, p)
        assert_counts(await truth.whole_log(running.dir), day, p)
        await truth.check_views(running.dir)
        async with await connect_from(running.dir, "test") as nc:
            for stream in ("OBJ_artifacts", "CHUNKS"):
                assert (await nc.jetstream().stream_info(stream)).state.messages == 0, stream


def live_through(directory: Path, image: str, driver: str, parts: list[str], seed: int) -> None:
    with up(directory, "--driver", driver) as running:
        run(the_day(running, image, parts, seed))
    assert remains(directory) == []


async def the_day(running: Running, image: str, parts: list[str], seed: int) -> None:
    async with Patient.connect(running.dir, prefix=f"day-{seed}") as p:
        async with Killer(running.dir, parts, seed) as killer:
            day = await a_day(p, image, running.dir)
        assert len(killer.kills) >= 4, killer.kills
        await nothing_is_open(running, p)
        await everything_is_answered_again(p)
        assert_counts(await truth.whole_log(running.dir), day, p)
        await truth.check_views(running.dir)


async def nothing_is_open(running: Running, p: Patient) -> None:
    async def closed() -> bool:
        return truth.open_work(await truth.whole_log(running.dir)) == []

    try:
        await eventually(closed, within=20)
    except AssertionError:
        raise AssertionError(f"still open: {truth.open_work(await truth.whole_log(running.dir))}\n{running.logs()}") from None
    assert [job for job in await p.items("jobs") if job["status"] not in {"READY", "FAILED"}] == []
    assert {sandbox["state"] for sandbox in await p.items("sandboxes")} == {"DEAD"}
    assert await p.items("replicas") == []


async def everything_is_answered_again(p: Patient) -> None:
    """Every command once more: the answer is the one that it had, and the log does not grow by it."""
    for identifier, before in list(p.answers.items()):
        after = await p.again(identifier)
        same = {key: value for key, value in after["result"].items() if key not in {"settled", "status", "state"}}
        if before["result"].get("repeated") or after["result"].get("repeated"):
            assert after["result"]["exit_code"] == before["result"]["exit_code"], identifier
        else:
            assert same == {key: before["result"][key] for key in same}, (identifier, p.bodies[identifier])


def assert_counts(log: list, day: Day, p: Patient) -> None:
    truth.check_chains(log)
    counted = truth.count(log)
    once = {
        "template.created": 3,
        "template.deleted": 3,
        "artifact.created": 2,
        "artifact.deleted": 2,
        "sandbox.created": 3,
        "sandbox.destroyed": 3,
        "sandbox.rolled-back": 1,
        "snapshot.created": 2,
        "snapshot.removed": 2,
        "job.created": 7,
        "job.succeeded": 7,
    }
    assert {name: counted[name] for name in once} == once, counted
    execs = [e["data"] for commit in log for e in commit.events if e["type"] == "sandbox.executed"]
    assert len({json.dumps(e["command"]) for e in execs}) == len(execs)
    assert {commit.id for commit in log if commit.type == "sandbox"} == set(day.sandboxes)
    assert p.refused is not None
