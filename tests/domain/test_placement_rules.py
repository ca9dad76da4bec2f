"""Where a sandbox goes by which strategy, how much may be promised on a node, and what is said of each node."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given as forall
from hypothesis import strategies as st

from domain.kernel.errors import Refused
from domain.nodes.orders import Capacity
from domain.nodes.placement import Candidate, Need, Overcommit, choose, decide, explain, room

pytestmark = pytest.mark.quick


def node(node_id: str, free_mb: int = 4096, **changes: Any) -> Candidate:
    known = {"status": "ready", "drivers": ("sim",), "free_cpu": 4, "memory_mb": 8192, "replica_ready": True}
    return Candidate(node_id=node_id, **{**known, "free_memory_mb": free_mb, **changes})


EMPTY, HALF, FULL = node("empty", 8000), node("half", 4000, present=1), node("full", 600, present=3)


@pytest.mark.parametrize(
    ("strategy", "order"), [("spread", "empty half full"), ("pack", "full half empty"), ("affinity", "full half empty")]
)
def test_a_strategy_orders_the_nodes_that_fit(strategy: Any, order: str) -> None:
    verdicts = explain([HALF, EMPTY, FULL], Need(strategy=strategy))
    assert [v.node_id for v in sorted(verdicts, key=lambda v: v.rank or 0)] == order.split()
    assert choose([HALF, EMPTY, FULL], Need(strategy=strategy)) == order.split(maxsplit=1)[0]


def test_packing_never_takes_a_node_that_is_too_full() -> None:
    assert choose([EMPTY, FULL], Need(memory_mb=700, strategy="pack")) == "empty"


def test_affinity_is_for_nodes_that_fit_and_between_equals_spreads() -> None:
    assert choose([EMPTY, node("b", 5000), node("a", 5000)], Need(strategy="affinity")) == "empty"
    assert choose([EMPTY, node("stale", present=9, compat="STALE")], Need(strategy="affinity")) == "empty"


def test_a_crowded_node_and_one_that_would_have_to_fetch_come_last_whatever_the_strategy() -> None:
    crowded, far = node("crowded", 8100, free_cpu=0), node("far", 8100, far=True)
    assert choose([crowded, HALF], Need()) == "half"
    assert choose([far, crowded], Need()) == "crowded"
    said = {v.node_id: v for v in explain([far, crowded, HALF], Need())}
    assert [said[n].rank for n in ("half", "crowded", "far")] == [1, 2, 3]
    assert (said["crowded"].crowded, said["far"].far) == (True, True)


def test_labels_choose_nodes_and_the_refusal_names_them() -> None:
    east = node("east", labels={"zone": "east", "disk": "ssd"})
    assert choose([EMPTY, east], Need(node_labels={"zone": "east"})) == "east"
    with pytest.raises(Refused) as refused:
        choose([EMPTY, east], Need(node_labels={"zone": "west"}))
    assert (refused.value.code, refused.value.details["labels"]) == ("node.no-labels", {"zone": "west"})


@pytest.mark.parametrize(
    ("used", "ratios", "need", "short"),
    [
        ({"memory_mb": 600}, {}, {"memory_mb": 500}, {"n": "memory"}),
        ({"memory_mb": 600}, {"memory": 1.5}, {"memory_mb": 500}, None),
        ({"memory_mb": 600}, {"memory": 0.5}, {"memory_mb": 16}, {"n": "memory"}),
        ({"cpu": 9}, {}, {"cpu": 4}, None),
        ({"cpu": 2}, {"cpu": 1}, {"cpu": 2}, None),
        ({"cpu": 2.5}, {"cpu": 1}, {"cpu": 2}, {"n": "cpu"}),
        ({"cpu": 9}, {"cpu": 3}, {"cpu": 3}, None),
        ({"sandboxes": 9}, {}, {}, None),
        ({"sandboxes": 10}, {}, {}, {"n": "sandboxes"}),
        ({"sandboxes": 10}, {"sandboxes": 1.1}, {}, None),
        ({"sandboxes": 4}, {"sandboxes": 0.45}, {}, {"n": "sandboxes"}),
    ],
)
def test_what_may_be_promised_is_what_there_is_times_the_ratio(used: Any, ratios: Any, need: Any, short: Any) -> None:
    capacity = Capacity(cpu=4, memory_mb=1000, sandboxes=10)
    free = room(capacity, Capacity(**used), Overcommit(**ratios))
    candidate = Candidate(node_id="n", status="ready", drivers=("sim",), replica_ready=True, **free)
    wanted = Need(**{"cpu": 1, "memory_mb": 16, **need})
    if short is None:
        assert choose([candidate], wanted) == "n"
        return
    with pytest.raises(Refused) as refused:
        choose([candidate], wanted)
    assert (refused.value.code, refused.value.retryable, refused.value.details["short_of"]) == ("capacity.exhausted", True, short)


def test_a_node_that_does_not_say_how_many_sandboxes_it_takes_takes_any_number() -> None:
    assert room(Capacity(), Capacity(sandboxes=5), Overcommit())["free_sandboxes"] is None


@pytest.mark.parametrize(
    ("candidate", "need", "code"),
    [
        (node("n", status="evicted"), Need(), "node.evicted"),
        (node("n"), Need(node="other"), "node.not-asked"),
        (node("n", status="offline"), Need(node="n"), "node.offline"),
        (node("n", replica_ready=False), Need(), "template.no-ready-replica"),
        (node("n", status="offline"), Need(), "node.offline"),
        (node("n", compat="STALE"), Need(), "template.stale-needs-redo"),
        (node("n", status="cordoned"), Need(), "node.cordoned"),
        (node("n", status="draining"), Need(), "node.draining"),
        (node("n"), Need(driver="vm"), "node.no-driver"),
        (node("n"), Need(node_labels={"zone": "a"}), "node.no-labels"),
        (node("n"), Need(bounds=("cpu",)), "sandbox.unsupported"),
        (node("n", 100), Need(), "capacity.exhausted"),
        (node("n", free_cpu=0.5, cpu_bounded=True), Need(), "capacity.exhausted"),
        (node("n", free_sandboxes=0), Need(), "capacity.exhausted"),
    ],
)
def test_why_not_there_has_a_code_for_every_rule(candidate: Candidate, need: Need, code: str) -> None:
    said = explain([candidate], need)[0]
    assert (said.fits, said.rank, said.code) == (False, None, code)
    assert said.reason


def test_a_decision_says_what_it_was_made_of() -> None:
    made = decide([HALF, EMPTY, node("x", 1), node("y", status="cordoned"), node("z", status="cordoned")], Need(strategy="pack"))
    assert made.node_id == "half"
    assert (made.strategy, made.considered, made.fitting, made.runner_up) == ("pack", 5, 2, "empty")
    assert made.refused == {"capacity.exhausted": 1, "node.cordoned": 2}
    assert made.score == round(1 - 4000 / 8192, 4)


SIZES = st.lists(st.integers(16, 700), max_size=30)


@forall(sizes=SIZES, ratio=st.sampled_from([0.5, 1, 1.5, 2]), strategy=st.sampled_from(["spread", "pack", "affinity"]))
def test_no_node_is_ever_promised_more_than_it_may(sizes: list[int], ratio: float, strategy: Any) -> None:
    """Whatever comes in whatever order; and a refusal means that it would not have fitted anywhere."""
    used = {"a": 0, "b": 0}

    def candidates() -> list[Candidate]:
        ratios = Overcommit(memory=ratio)
        return [
            Candidate(
                node_id=name,
                status="ready",
                replica_ready=True,
                **room(Capacity(cpu=1, memory_mb=1000), Capacity(memory_mb=taken), ratios),
            )
            for name, taken in used.items()
        ]

    for size in sizes:
        try:
            used[choose(candidates(), Need(memory_mb=size, strategy=strategy))] += size
        except Refused:
            assert all(taken + size > 1000 * ratio for taken in used.values())
    assert max(used.values()) <= 1000 * ratio
