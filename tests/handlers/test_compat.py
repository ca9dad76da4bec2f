"""The compat matrix through the bus: a control plane, scripted nodes and a projector (reference/cubesandbox.md §6, scenario 24 of §11)."""

from __future__ import annotations

from pathlib import Path

import pytest
from support.watched import watched

from domain.kernel.errors import Refused

pytestmark = pytest.mark.quick


def test_replicas_are_judged_by_what_their_nodes_run(at, tmp_path: Path) -> None:
    """Scenario 24: OK, STALE, UNKNOWN, MISSING, and what a node that is not heard leaves of them."""

    async def test(place) -> None:
        async with watched(place, tmp_path, "node-2", "node-3") as w:
            template = await place.template(alias="t", nodes=["node-1", "node-2"])
            assert await w.cells("t") == {"node-1": "OK", "node-2": "OK", "node-3": "MISSING"}
            await w.runs("node-1", guest_image="2", agent="unknown")
            await w.runs("node-2", agent="", kernel="7")
            assert await w.cells("t") == {"node-1": "STALE", "node-2": "UNKNOWN", "node-3": "MISSING"}
            await w.judged_alike(template)
            assert await w.ask("summary") == [
                {
                    "templates": 1,
                    "stale_templates": 1,
                    "stale_replicas": 1,
                    "affected_nodes": 1,
                    "unknown_replicas": 1,
                    "missing_replicas": 1,
                    "online_nodes": 3,
                }
            ]
            assert (await place.do("sandbox.create", {"template": "t", "wait_s": 10}))["node_id"] == "node-2", "UNKNOWN is schedulable"
            await w.runs("node-2", agent="1")
            assert (await w.cells("t"))["node-2"] == "OK", "the kernel never counts"
            await w.silent("node-1", "node-2")
            assert await w.cells("t") == {"node-1": "STALE", "node-2": "UNKNOWN", "node-3": "MISSING"}
            await w.judged_alike(template)

    at(test)


def test_all_stale_refuses_with_the_nodes_and_adoption_mends_the_unknown_only(at, tmp_path: Path) -> None:
    """Scenario 24: TemplateStaleNeedsRedo with sorted nodes; adopt changes UNKNOWN only."""

    async def test(place) -> None:
        async with watched(place, tmp_path, "node-2", "node-3") as w:
            await w.runs("node-3", agent="")
            template = await place.template(alias="t")
            await w.runs("node-3", agent="1")
            for node in ("node-2", "node-1"):
                await w.runs(node, guest_image="2")
            assert await w.cells("t") == {"node-1": "STALE", "node-2": "STALE", "node-3": "UNKNOWN"}
            assert (await place.do("template.adopt-baseline", {"template": "t"}))["updated"] == 1
            assert await w.cells("t") == {"node-1": "STALE", "node-2": "STALE", "node-3": "OK"}
            await w.runs("node-3", guest_image="2")
            with pytest.raises(Refused) as refused:
                await place.do("sandbox.create", {"template": "t"})
            assert (refused.value.code, refused.value.details) == ("template.stale-needs-redo", {"nodes": ["node-1", "node-2", "node-3"]})
            assert (await place.do("template.adopt-baseline", {"template": "t"}))["updated"] == 0
            await place.do("template.redo", {"template": "t", "mode": "NODES", "nodes": ["node-2"], "wait_s": 10})
            assert (await w.cells("t"))["node-2"] == "OK"
            assert (await place.do("sandbox.create", {"template": "t", "wait_s": 10}))["node_id"] == "node-2"
            await w.judged_alike(template)

    at(test)


def test_a_policy_says_for_a_template_which_versions_count_wherever_that_is_asked(at, tmp_path: Path) -> None:
    """Scenario 24: a2 with GUEST_ONLY is OK; in the matrix, the view of replicas, placement, rescan and adoption alike."""

    async def test(place) -> None:
        async with watched(place, tmp_path) as w:
            lax, strict = await place.template(alias="lax"), await place.template(alias="strict", memory_mb=64)
            set_to = await place.do("template.set-compat-policy", {"template": "lax", "policy": "GUEST_ONLY"})
            assert set_to == {"template_id": lax, "policy": "GUEST_ONLY"}
            place.node.versions = place.node.versions.model_copy(update={"agent": "2"})
            assert (await place.do("compat.rescan", {"all": True}))["changed"] == 1, "of two replicas, one"
            assert {row["template_id"]: (row["policy"], row["overall"]) for row in await w.ask("list")} == {
                lax: ("GUEST_ONLY", "OK"),
                strict: ("STRICT", "STALE"),
            }
            await w.judged_alike(lax)
            await place.sandbox("lax")
            with pytest.raises(Refused, match="redo it"):
                await place.sandbox("strict")
            await w.runs("node-1", agent="")
            assert (await place.do("template.adopt-baseline", {"template": "lax"}))["updated"] == 0, "it is not UNKNOWN"
            await w.runs("node-1", agent="2")
            await place.do("template.set-compat-policy", {"template": "lax", "policy": "STRICT"})
            assert (await w.cells("lax"), (await w.ask("summary"))[0]["stale_replicas"]) == ({"node-1": "STALE"}, 2)
            await w.judged_alike(lax)
            with pytest.raises(Refused, match="redo it"):
                await place.sandbox("lax")
            with pytest.raises(Refused) as refused:
                await place.do("template.set-compat-policy", {"template": "lax", "policy": "MAYBE"})
            assert (refused.value.code, list(refused.value.details)) == ("command.invalid", ["policy"])

    at(test)


def test_the_matrix_can_be_seen_as_it_was_before_an_upgrade(at, tmp_path: Path) -> None:
    """The history of a node's versions is the log's: by position and by instant."""

    async def test(place) -> None:
        async with watched(place, tmp_path) as w:
            await place.template(alias="t")
            before = await place.plane.control.store.position()
            await w.runs("node-1", guest_image="2")
            await place.do("template.set-compat-policy", {"template": "t", "policy": "GUEST_ONLY"})
            [upgraded] = [
                event
                for commit in await place.plane.control.store.read("system", "node", "node-1")
                for event in commit.events
                if event["type"] == "node.versions-changed" and event["data"]["previous"].get("guest_image")
            ]
            assert (upgraded["data"]["previous"]["guest_image"], upgraded["data"]["versions"]["guest_image"]) == ("1", "2")
            assert (await w.cells("t"), await w.cells("t", as_of=before)) == ({"node-1": "STALE"}, {"node-1": "OK"})
            [then] = await w.ask("get", id="t", as_of=before)
            assert (then["policy"], then["nodes"][0]["current"]["guest_image"]) == ("STRICT", "1")
            [summary] = await w.ask("summary", as_of=before)
            assert (summary["stale_templates"], summary["online_nodes"]) == (0, 1)

    at(test)


def test_what_would_be_stale_is_asked_and_nothing_happens(at, tmp_path: Path) -> None:
    """By the very rules: what the question foretells is what the matrix says when the node has moved."""

    async def test(place) -> None:
        async with watched(place, tmp_path, "node-2") as w:
            lax, strict = await place.template(alias="lax"), await place.template(alias="strict", memory_mb=64)
            await place.do("template.set-compat-policy", {"template": "lax", "policy": "GUEST_ONLY"})
            before = await place.plane.control.store.position()

            async def foretold(**asked) -> dict[str, str]:
                return {cell["template_id"]: cell["what_if"] for cell in await w.ask("what-if", node_id="node-1", **asked)}

            assert await foretold(agent="2") == {lax: "OK", strict: "STALE"}
            assert await foretold(agent="2", what_if="STALE") == {strict: "STALE"}
            assert await foretold(guest_image="2") == {lax: "STALE", strict: "STALE"}
            assert await foretold(kernel="7") == {lax: "OK", strict: "OK"}
            assert await foretold(agent="unknown") == {lax: "OK", strict: "UNKNOWN"}
            [first] = await w.ask("what-if", node_id="node-1", guest_image="2", limit=1)
            assert first == {
                "template_id": min(lax, strict),
                "node_id": "node-1",
                "compat": "OK",
                "what_if": "STALE",
                "policy": first["policy"],
                "bound": {"guest_image": "1", "agent": "1", "kernel": "6"},
                "current": {"guest_image": "1", "agent": "1", "kernel": "6"},
                "supposed": {"guest_image": "2", "agent": "1", "kernel": "6"},
            }
            assert await place.plane.control.store.position() == before, "asking is no event"
            await w.runs("node-1", agent="2")
            assert {t: (await w.cells(t))["node-1"] for t in (lax, strict)} == await foretold(agent="2")
            assert await foretold(agent="3", as_of=before) == {lax: "OK", strict: "STALE"}
            for asked, code in (({"node_id": "node-9", "agent": "1"}, "node.not-found"), ({"node_id": "node-1"}, "query.invalid")):
                with pytest.raises(Refused) as refused:
                    await w.ask("what-if", **asked)
                assert refused.value.code == code

    at(test)
