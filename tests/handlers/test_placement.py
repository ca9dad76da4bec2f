"""Placement as its callers see it: strategies, labels and ratios on several nodes, and why a sandbox is here and not there."""

from __future__ import annotations

from support.places import nodes, refusal
from support.waiting import eventually

from domain.sandboxes.sandbox import Sandbox


async def explained(place, **asked) -> dict[str, dict]:
    """Node → what is said of it."""
    reply = await place.caller.query("default", "placement", "explain", asked)
    return {item["node_id"]: item for item in reply["items"]}


async def configure(place, node: str, **wishes) -> None:
    seq = (await place.caller.command("default", "node.configure", {"node_id": node, **wishes}))["seq"]
    await place.plane.control.fleet.reached(seq)


def test_placement_does_what_it_is_told_and_says_why(at) -> None:
    async def test(place) -> None:
        async with nodes(place, "node-2", "node-3"):
            template = await place.template(alias="base")
            await configure(place, "node-2", labels={"zone": "east"})

            async def where(**wishes) -> str:
                return (await place.get(Sandbox, await place.sandbox("base", **wishes))).node_id

            assert await where(node="node-3") == "node-3"
            assert await where(strategy="pack") == "node-3"
            assert await where(strategy="affinity") == "node-3"
            assert await where(node_labels={"zone": "east"}) == "node-2"
            assert await where() == "node-1"
            nowhere = await refusal(place.do("sandbox.create", {"template": "base", "node_labels": {"zone": "west"}}))
            assert (nowhere.code, nowhere.details["labels"]) == ("node.no-labels", {"zone": "west"})

            said = await explained(place, template="base", strategy="pack", memory_mb=1024)
            assert {n: (s["rank"], s["code"]) for n, s in said.items()} == {"node-3": (1, ""), "node-1": (2, ""), "node-2": (3, "")}
            await place.do("node.cordon", {"node_id": "node-3"})
            seq = (await place.caller.command("default", "node.configure", {"node_id": "node-1", "memory_ratio": 0.1}))["seq"]
            said = await explained(place, template=template, memory_mb=16_384, min_seq=seq)
            assert {n: s["code"] for n, s in said.items()} == {"node-1": "capacity.exhausted", "node-2": "", "node-3": "node.cordoned"}
            assert said["node-1"]["reason"].endswith("16384 are wanted")

    at(test)


def test_why_here_is_written_down_and_why_not_there_is_judged_now(at) -> None:
    async def test(place) -> None:
        async with nodes(place, "node-2"):
            template = await place.template()
            await configure(place, "node-1", labels={"disk": "ssd"})
            sandbox = await place.sandbox(template, node_labels={"disk": "ssd"}, memory_mb=60_000)
            placed = (await place.get(Sandbox, sandbox)).placed
            assert (placed.strategy, placed.considered, placed.fitting) == ("spread", 2, 1)
            assert (placed.refused, placed.node_labels) == ({"node.no-labels": 1}, {"disk": "ssd"})
            said = await explained(place, sandbox_id=sandbox)
            assert (said["node-1"]["here"], said["node-1"]["rank"]) == (True, 1), "what it uses itself counts as free"
            assert (said["node-2"]["here"], said["node-2"]["code"]) == (False, "node.no-labels")
            page = await place.caller.query("default", "placement", "explain", {"sandbox_id": sandbox, "limit": 1})
            assert ([i["node_id"] for i in page["items"]], page["next"]) == (["node-1"], "node-1")
            assert list(await explained(place, sandbox_id=sandbox, cursor="node-1")) == ["node-2"]

    at(test)


def test_ratios_decide_how_much_is_promised_and_what_runs_stays(at) -> None:
    async def test(place) -> None:
        template = await place.template(memory_mb=16)
        await place.node.hello(memory_mb=100, cpu=2, sandboxes=3)
        await eventually(lambda: place.plane.control.fleet.nodes["node-1"].capacity.memory_mb == 100)
        await place.sandbox(template, memory_mb=90, cpu=2)
        asked = {"template": template, "memory_mb": 50, "cpu": 2}
        assert (await refusal(place.do("sandbox.create", asked))).details["short_of"] == {"node-1": "memory"}
        await configure(place, "node-1", memory_ratio=2)
        second = await place.sandbox(**asked)
        await configure(place, "node-1", cpu_ratio=2)
        assert (await refusal(place.do("sandbox.create", asked))).details["short_of"] == {"node-1": "cpu"}
        await configure(place, "node-1", cpu_ratio=0, sandboxes_ratio=0.7)
        assert (await refusal(place.do("sandbox.create", asked))).details["short_of"] == {"node-1": "sandboxes"}
        await place.do("sandbox.delete", {"sandbox_id": second, "wait_s": 10})
        await place.sandbox(**asked)

    at(test)


UNEXPLAINED = [
    ({}, "query.invalid"),
    ({"template": "x", "sandbox_id": "sb-" + "a" * 20}, "query.invalid"),
    ({"template": "x", "as_of": 3}, "query.invalid"),
    ({"template": "x", "strategy": "best"}, "query.invalid"),
    ({"template": "none"}, "template.not-found"),
    ({"sandbox_id": "sb-" + "a" * 20}, "sandbox.not-found"),
    ({"snapshot_id": "snap-" + "0" * 24}, "snapshot.not-found"),
]


def test_what_cannot_be_explained_is_refused_by_its_name(at) -> None:
    async def test(place) -> None:
        assert [(asked, (await refusal(explained(place, **asked))).code) for asked, _ in UNEXPLAINED] == UNEXPLAINED

    at(test)
