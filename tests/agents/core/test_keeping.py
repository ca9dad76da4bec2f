"""The watchdogs of a real agent with a real driver, and of the control plane, on a real bus."""

from __future__ import annotations

import os
import shutil
from datetime import UTC, datetime, timedelta

import pytest
from support.agents import NODE, AgentProcess
from support.kept import kept, pids
from support.waiting import eventually, run

from agents.drivers.crun import find
from domain.nodes.orders import Verb

pytestmark = pytest.mark.slow

OCI = pytest.param("oci", marks=[pytest.mark.root, pytest.mark.skipif(find() is None, reason="crun is not installed")])
PROCESS = pytest.param("process", marks=pytest.mark.skipif(shutil.which("bwrap") is None, reason="bubblewrap is not installed"))


@pytest.mark.parametrize("driver", [PROCESS, OCI])
def test_what_the_log_does_not_know_is_taken_from_the_host_and_the_log_says_so(server, built, tmp_path, driver: str) -> None:
    async def scenario() -> None:
        async with kept(server, tmp_path / "strand", *built) as place:
            async with AgentProcess(place, driver, "--starts-waiting=0"):  # looks at its start, and again in five minutes
                await place.online()
                stranger = await place.past_the_log("stranger")
                would = await place.do("node.sweep", {"node_id": NODE, "dry_run": True})
                gone = {"kind": "sandbox", "id": stranger, "why": "unknown"}
                assert (would["removed"], bool(pids("stranger"))) == ([gone], True)
                assert (await place.do("node.sweep", {"node_id": NODE}))["removed"] == [gone]
                assert await place.swept() == [gone]
                assert pids("stranger") == set()
            if driver != "process":
                return  # the timer is the same for every driver
            async with AgentProcess(place, driver, "--starts-waiting=0", "--look", "0.2"):
                await place.online()
                other = await place.past_the_log("other")
                assert await place.swept(2) == [gone, {**gone, "id": other}]
                assert pids("other") == set()
                assert [path for path in (place.own / "logs").iterdir() if path.name in {stranger, other}] == []

    run(scenario())


def test_a_nodes_copy_of_an_artifact_that_nobody_knows_goes_after_a_day(server, built, tmp_path) -> None:
    """Scenario 24, on a real disk: when a week is over, also over a restart of the agent."""

    async def scenario() -> None:
        async with kept(server, tmp_path / "strand", *built) as place:
            artifact = place.artifact.artifact_id
            copy = place.own / "artifacts" / f"{artifact}.ext4"
            async with AgentProcess(place, "process", "--starts-waiting=0") as agent:
                await place.online()
                body = {"template_id": "tpl-" + "0" * 24, "artifact": place.artifact.model_dump()}
                await place.send(place.order(Verb.REPLICA_DISTRIBUTE, body))
                await eventually(lambda: copy.with_suffix(".json").exists(), 20)
                assert (await place.do("node.sweep", {"node_id": NODE}))["removed"] == []
                await agent.stop()
            os.utime(copy, (1, 1))
            (place.own / "collected").write_text((datetime.now(UTC) - timedelta(hours=168)).isoformat())
            async with AgentProcess(place, "process", "--starts-waiting=0"):
                assert await place.swept() == [{"kind": "artifact", "id": artifact, "why": "unknown"}]
                assert not copy.exists()

    run(scenario())
