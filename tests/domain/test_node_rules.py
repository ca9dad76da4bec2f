"""Nodes: what is news about them, what an evicted one is told, and where a sandbox goes."""

from __future__ import annotations

from datetime import timedelta
from typing import Any

import pytest
from hypothesis import given as forall
from hypothesis import strategies as st
from support import worlds
from support.gwt import T0, did, given
from support.worlds import V1, V2, hello

from domain.kernel.errors import Refused
from domain.nodes.node import Liveness
from domain.nodes.orders import Versions
from domain.nodes.placement import Candidate, Need, choose
from domain.nodes.storage_modes import StorageMode, storage_mode

pytestmark = pytest.mark.quick


def test_the_first_hello_tells_everything() -> None:
    step = hello()
    greeted = given(worlds.node).when(step.method, *step.args)
    greeted.then("node.agent-started", "node.described", "node.versions-changed", "node.came-online", "node.storage-mode-changed")
    assert greeted.events[2].previous == Versions()
    assert greeted.aggregate.status == "ready"


def test_a_hello_tells_only_what_changed() -> None:
    known = given(worlds.node, hello())
    known.when("hello", *hello().args).then_nothing()
    known.when("hello", *hello("b2").args).then("node.agent-started")
    changed = known.when("hello", *hello("b2", V2).args)
    changed.then("node.versions-changed")
    assert (changed.events[0].versions, changed.events[0].previous) == (V2, V1)


def test_an_evicted_node_is_refused_until_it_is_enrolled_again() -> None:
    evicted = given(worlds.node, hello(), did("evict"))
    assert evicted.aggregate.status == "evicted"
    evicted.when("hello", *hello().args).then_refused("node.evicted")
    evicted.when("come_online").then_refused("node.evicted")
    evicted.when("cordon").then_refused("node.evicted")
    back = evicted.when("enroll", "new disk").then("node.re-enrolled", note="new disk", liveness=Liveness.OFFLINE)
    back.when("hello", *hello().args).then("node.came-online", "node.storage-mode-changed", storage=StorageMode.HEALTHY)


@pytest.mark.parametrize(
    ("steps", "status"),
    [
        ((), "offline"),
        ((hello(),), "ready"),
        ((hello(), did("cordon")), "cordoned"),
        ((hello(), did("drain")), "draining"),
        ((hello(), did("drain"), did("go_offline", T0)), "offline"),
        ((hello(), did("drain"), did("go_offline", T0), did("come_online")), "draining"),
        ((hello(), did("cordon"), did("evict"), did("enroll"), did("come_online")), "ready"),
    ],
)
def test_the_status_in_one_word(steps: tuple[Any, ...], status: str) -> None:
    assert given(worlds.node, *steps).aggregate.status == status


def test_a_drain_can_say_when_the_node_must_be_empty_and_change_its_mind() -> None:
    soon, later = T0 + timedelta(seconds=62), T0 + timedelta(seconds=602)
    draining = given(worlds.node, hello(), did("drain")).aggregate
    assert not draining.must_be_empty(later)
    with_time = given(draining).when("drain", 59).then("node.draining", stop_at=soon)
    assert [with_time.aggregate.must_be_empty(now) for now in (T0, soon)] == [False, True]
    with_time.when("drain").then_nothing()
    with_time.when("uncordon").then("node.uncordoned", stop_at=None)


@pytest.mark.parametrize(
    ("pct", "mode"),
    [
        (0, "healthy"),
        (69.9, "healthy"),
        (70, "warn"),
        (84, "warn"),
        (85, "reject"),
        (94.9, "reject"),
        (95, "delete_only"),
        (100, "delete_only"),
    ],
)
def test_the_storage_mode_follows_the_usage(pct: float, mode: str) -> None:
    """reference/cubesandbox.md §5.7 and scenario 17."""
    assert storage_mode(pct).value == mode


def test_what_nobody_knows_allows_nothing() -> None:
    assert storage_mode(None) is storage_mode(float("nan")) is StorageMode.UNKNOWN
    node = given(worlds.node, hello(storage_pct=84))
    assert node.aggregate.writable
    node.when("change_storage_mode", 84.5).then_nothing()
    node.when("change_storage_mode", None).then("node.storage-mode-changed", writable=False, storage_pct=None)
    node.when("change_storage_mode", 50).then("node.storage-mode-changed", writable=True)
    node.when("go_offline", T0).then("node.went-offline", writable=False, last_seen=T0)


# --------------------------------------------------------------------------------------------------------- placement


def node(node_id: str, **changes: Any) -> Candidate:
    known = {"status": "ready", "drivers": ("sim",), "free_cpu": 4, "free_memory_mb": 4096, "memory_mb": 8192, "replica_ready": True}
    return Candidate(node_id=node_id, **{**known, **changes})


def test_sandboxes_spread_by_the_share_of_free_memory() -> None:
    big = node("b", free_memory_mb=6000, memory_mb=16_000)
    assert choose([big, node("a")], Need()) == "a"
    assert choose([node("c"), node("a"), node("b")], Need()) == "a"
    assert choose([node("a", free_cpu=0), node("b")], Need()) == "b", "cores only make it less attractive"
    assert choose([node("a", free_cpu=-3)], Need()) == "a"


def test_a_sandbox_with_a_way_out_goes_where_there_is_one() -> None:
    assert choose([node("a"), node("b", flags={"sim": ("egress",)})], Need(egress=True)) == "b"


def test_a_memory_goes_on_where_the_driver_can_go_on_from_it() -> None:
    two = node("b", drivers=("sim", "vm"), flags={"vm": ("resumes-1", "resumes-2")}, free_memory_mb=600)
    assert choose([node("a", flags={"sim": ("resumes-2",)}), two], Need(driver="vm", flag="resumes-2")) == "b"


def test_a_wished_node_is_the_only_one() -> None:
    assert choose([node("a", free_memory_mb=8000), node("b")], Need(node="b")) == "b"


@pytest.mark.parametrize(
    ("candidates", "need", "code", "nodes"),
    [
        ([], Need(), "template.no-ready-replica", []),
        ([node("a", replica_ready=False)], Need(), "template.no-ready-replica", ["a"]),
        ([node("a")], Need(node="z"), "node.not-found", None),
        ([node("a", status="offline")], Need(node="a"), "node.offline", None),
        ([node("a", status="cordoned")], Need(node="a"), "node.cordoned", None),
        ([node("a", status="evicted")], Need(node="a"), "node.evicted", None),
        ([node("a", status="evicted")], Need(), "template.no-ready-replica", []),
        ([node("b", status="offline"), node("a", status="offline")], Need(), "node.offline", ["a", "b"]),
        ([node("b", compat="STALE"), node("a", compat="STALE")], Need(), "template.stale-needs-redo", ["a", "b"]),
        ([node("b", compat="STALE"), node("a", status="offline")], Need(), "template.stale-needs-redo", ["b"]),
        ([node("b", compat="STALE", status="cordoned")], Need(), "template.stale-needs-redo", ["b"]),
        ([node("a", status="cordoned"), node("b", status="draining")], Need(), "capacity.exhausted", ["a", "b"]),
        ([node("a")], Need(driver="vm"), "node.no-driver", ["a"]),
        ([node("a", flags={"sim": ("resumes-1",)})], Need(flag="resumes-2"), "snapshot.incompatible", ["a"]),
        ([node("a", free_memory_mb=511), node("b", free_memory_mb=0)], Need(), "capacity.exhausted", ["a", "b"]),
        ([node("b"), node("a", flags={"sim": ("rlimit-memory",)})], Need(bounds=("cpu",)), "sandbox.unsupported", ["a", "b"]),
        ([node("a", drivers=("sim", "oci"), flags={"oci": ("limits",)})], Need(bounds=("memory_mb",)), "sandbox.unsupported", ["a"]),
        ([node("a", flags={"sim": ("network",)})], Need(egress=True), "sandbox.unsupported", ["a"]),
    ],
)
def test_the_refusal_names_the_first_rule_that_nobody_passed(
    candidates: list[Candidate], need: Need, code: str, nodes: list[str] | None
) -> None:
    with pytest.raises(Refused) as caught:
        choose(candidates, need)
    assert caught.value.code == code
    if nodes is not None:
        assert caught.value.details["nodes"] == nodes


def test_a_bound_that_was_asked_for_is_kept_or_refused_and_a_template_s_own_is_told() -> None:
    loose, strict = node("a", free_memory_mb=8000, flags={"sim": ("rlimit-memory",)}), node("b", flags={"sim": ("limits",)})
    assert choose([loose, strict], Need()) == "a"
    assert choose([loose, strict], Need(bounds=("memory_mb",))) == "a", "for each process by itself"
    assert choose([loose, strict], Need(bounds=("cpu", "memory_mb"))) == "b"
    with pytest.raises(Refused) as caught:
        choose([loose], Need(bounds=("cpu", "memory_mb")))
    assert (caught.value.details["fields"], caught.value.details["needs"]) == (["cpu"], {"cpu": ["limits"]})
    assert (loose.unenforced("sim"), strict.unenforced(None)) == (("cpu", "disk_mb", "pids"), ("disk_mb",))


@pytest.mark.parametrize("compat", ["OK", "UNKNOWN", "MISSING"])
def test_only_stale_keeps_a_sandbox_from_starting(compat: str) -> None:
    assert choose([node("a", compat=compat), node("b", compat="STALE", free_memory_mb=8000)], Need()) == "a"


CANDIDATES = st.lists(
    st.builds(
        Candidate,
        node_id=st.sampled_from("abcdef"),
        status=st.sampled_from(["ready", "cordoned", "draining", "offline", "evicted"]),
        drivers=st.sampled_from([("sim",), ("oci", "sim"), ()]),
        free_memory_mb=st.integers(-100, 2000),
        memory_mb=st.just(2000),
        replica_ready=st.booleans(),
        compat=st.sampled_from(["OK", "STALE", "UNKNOWN", "MISSING"]),
    ),
    unique_by=lambda c: c.node_id,
    max_size=6,
)


@forall(candidates=CANDIDATES, seed=st.randoms())
def test_the_choice_fits_and_does_not_depend_on_the_order(candidates: list[Candidate], seed: Any) -> None:
    need = Need(memory_mb=256, driver="sim")
    fitting = [
        c
        for c in candidates
        if c.status == "ready" and c.replica_ready and c.compat != "STALE" and "sim" in c.drivers and c.free_memory_mb >= 256
    ]
    try:
        chosen = choose(candidates, need)
    except Refused:
        assert not fitting
        return
    assert chosen in {c.node_id for c in fitting}
    shuffled = list(candidates)
    seed.shuffle(shuffled)
    assert choose(shuffled, need) == chosen
