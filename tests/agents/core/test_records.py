"""The agent's memory: bounded, and the same after compaction as before."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta

import pytest
from hypothesis import given
from hypothesis import strategies as st
from support import examples
from support.records import record

from agents import records
from agents.records import (
    Memory,
    box_entry,
    end_entry,
    gone_entry,
    machine_entry,
    order_entry,
    replica_entry,
    saga_entry,
    step_entry,
    unbegun_entry,
    unwind_entry,
)
from domain.nodes.orders import Failure, Order, Report, ReportKind, StepReport, StepState, Verb

pytestmark = pytest.mark.quick

NOW = datetime(2026, 1, 1, tzinfo=UTC)
ORDERS = st.sampled_from([f"o{n}" for n in range(4)])
SANDBOXES = st.sampled_from([record(condition) for condition in ("starting", "running", "paused", "exited")])
TIMES = st.integers(0, 1_000_000).map(lambda seconds: NOW + timedelta(seconds=seconds))


def order(identifier: str) -> Order:
    return Order(
        id=identifier, verb=Verb.SANDBOX_PROVISION, project="p", key="k", process="x", process_id="y", at=NOW, body={"sandbox_id": "s"}
    )


def report(identifier: str, name: str = "done", size: int = 0) -> Report:
    about = {"order": identifier, "node": "n", "verb": "v", "project": "p"}
    return Report(id=f"{identifier}:{name}", kind=ReportKind.DONE, at=NOW, body={"text": "x" * size}, **about)


ENTRIES = st.one_of(
    st.builds(order_entry, ORDERS.map(order), TIMES),
    st.builds(lambda o, n: {"k": "begun", "id": o, "n": n}, ORDERS, st.integers(0, 5)),
    st.builds(
        lambda o, step, state: step_entry(o, StepReport(step=step, state=state, at=NOW, output={"o": step})),
        ORDERS,
        st.sampled_from("abc"),
        st.sampled_from(list(StepState)),
    ),
    st.builds(saga_entry, ORDERS, st.sampled_from(["a/1", "a/2"])),
    st.builds(lambda o: unwind_entry(o, "a", Failure(code="c", message="m")), ORDERS),
    st.builds(lambda o, at, size: end_entry(o, at, report(o, size=size)), ORDERS, TIMES, st.sampled_from([0, 20_000])),
    st.builds(lambda o: {"k": "sent", "id": f"{o}:done"}, ORDERS),
    st.builds(lambda o: {"k": "say", "report": report(o, "seen").model_dump(mode="json")}, ORDERS),
    st.builds(box_entry, SANDBOXES),
    st.builds(lambda s, at, for_ever: gone_entry(s.id, at, for_ever=for_ever), SANDBOXES, TIMES, st.booleans()),
    st.builds(lambda s, n: {"k": "log", "id": s.id, "at": {"stdout": n}}, SANDBOXES, st.integers(0, 9)),
    st.builds(replica_entry, st.sampled_from(["t1", "t2"]), st.sampled_from(["a1", None])),
    st.builds(machine_entry, st.sampled_from(["boot-1", "boot-2"])),
    st.builds(unbegun_entry, ORDERS),
    st.just({"k": "of-a-newer-agent", "x": 1}),
)


def everything(memory: Memory) -> dict[str, object]:
    return {name: value if isinstance(value, str) else dict(value) for name, value in vars(memory).items()}


@examples.times(4)
@given(st.lists(ENTRIES, max_size=40))
def test_compaction_keeps_the_memory(entries):
    before, after = Memory(), Memory()
    for entry in entries:
        before.apply(entry)
    for entry in before.entries():
        after.apply(entry)
    assert everything(after) == everything(before)


def test_ended_orders_are_known_for_a_week_and_never_too_many(monkeypatch):
    monkeypatch.setattr(records, "KEEP_IDS", 50)
    memory = Memory()
    for n in range(200):
        memory.apply(end_entry(f"o{n}", NOW + timedelta(seconds=n), report(f"o{n}")))
        memory.apply({"k": "sent", "id": f"o{n}:done"})
    assert list(memory.ended) == [f"o{n}" for n in range(150, 200)]
    memory.apply(end_entry("later", NOW + timedelta(days=8), report("later")))
    assert list(memory.ended) == ["later"]


def test_answers_are_kept_for_a_while_but_not_big_ones(monkeypatch):
    monkeypatch.setattr(records, "KEEP_ANSWERS", 5)
    memory = Memory()
    for n in range(20):
        memory.apply(end_entry(f"o{n}", NOW, report(f"o{n}", size=20_000 if n == 19 else 0)))
        memory.apply({"k": "sent", "id": f"o{n}:done"})
    assert list(memory.answers) == [f"o{n}" for n in range(14, 19)]
    assert memory.outbox == {}
