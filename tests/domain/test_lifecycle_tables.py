"""Every aggregate, every state, every command: what really happens is what the table says."""

from __future__ import annotations

import inspect
from collections.abc import Iterator
from datetime import timedelta
from typing import Any

import pytest
from support import worlds
from support.gwt import Step, call

from domain import catalogue
from domain.kernel.aggregate import Aggregate
from domain.kernel.errors import Refused
from domain.kernel.lifecycle import SAME, Lifecycle
from domain.kernel.registry import AGGREGATES

pytestmark = pytest.mark.quick

catalogue.load()
OURS = {topic: cls for topic, cls in AGGREGATES.items() if cls.__module__.startswith("domain.")}


def _cells() -> Iterator[Any]:
    for topic, cls in OURS.items():
        for attribute, table in cls.LIFECYCLES.items():
            for row, state, cell in table:
                yield pytest.param(topic, attribute, table, row, state, cell, id=f"{topic}-{state.value}-{row}")


def _attempt(aggregate: Aggregate, step: Step, after: float) -> tuple[str, list[str]]:
    """What a call is met with: "ok" or a refusal's code, and the topics of the events."""
    at = aggregate.modified_on + timedelta(seconds=after)
    try:
        call(aggregate, step, at)
        outcome = "ok"
    except Refused as refusal:
        outcome = refusal.code
    return outcome, [event.TOPIC for event in aggregate.collect_events()]


def _code(table: Lifecycle[Any], cell: str) -> str:
    return cell[1:] or f"{table.noun}.illegal-state"


@pytest.mark.parametrize(("topic", "attribute", "table", "row", "state", "cell"), list(_cells()))
def test_a_command_does_what_its_cell_says(topic: str, attribute: str, table: Lifecycle[Any], row: str, state: Any, cell: str) -> None:
    world = worlds.WORLDS[topic]
    aggregate = world.reach(attribute, state.value, row)
    assert getattr(aggregate, attribute) is state
    step = world.step(row, aggregate)
    outcome, news = _attempt(aggregate, step, step.after)
    after = getattr(aggregate, attribute)
    if cell.startswith("!"):
        assert (outcome, news, after) == (_code(table, cell), [], state)
    elif cell == SAME:
        assert (outcome, news, after) == ("ok", [], state)
    else:
        assert outcome == "ok"
        assert news
        assert after is table.states(cell)
        _repeat(world.rows[row].again, aggregate, step, table, row, after)


def _repeat(news_again: bool, aggregate: Aggregate, step: Step, table: Lifecycle[Any], row: str, state: Any) -> None:
    """The very same call once more: silence, unless the table refuses it in the new state or says that repeats are news."""
    cell = table.table[row][state]
    outcome, news = _attempt(aggregate, step, 0)
    expected = _code(table, cell) if cell.startswith("!") else "ok"
    assert outcome in {expected, "ok"}
    if not (news_again and cell != SAME and not cell.startswith("!")):
        assert news == []


@pytest.mark.parametrize("topic", list(OURS))
def test_every_state_and_row_has_its_entry(topic: str) -> None:
    world, tables = worlds.WORLDS[topic], OURS[topic].LIFECYCLES
    assert tables
    assert set(world.rows) == {row for table in tables.values() for row in table.table}
    assert {name: set(states) for name, states in world.states.items()} == {
        name: {state.value for state in table.states} for name, table in tables.items()
    }


@pytest.mark.parametrize("cls", list(OURS.values()), ids=list(OURS))
def test_every_decision_has_a_row_and_every_row_a_decision(cls: type[Aggregate]) -> None:
    decisions = {
        name
        for name, method in inspect.getmembers(cls, inspect.isfunction)
        if not name.startswith("_")
        and not method.__module__.startswith(("domain.kernel.", "eventsourcing."))
        and (name.startswith("require_") or list(inspect.signature(method).parameters)[1:2] == ["at"])
    }
    rows = {row.partition(":")[0] for table in cls.LIFECYCLES.values() for row in table.table}
    assert decisions == rows


def test_a_table_that_forgets_a_state_or_a_cell_is_refused() -> None:
    states = OURS["alias"].LIFECYCLES["state"].states
    with pytest.raises(ValueError, match="columns are not its states"):
        Lifecycle("alias", states, "FREE\nclaim FREE")
    with pytest.raises(ValueError, match="1 cells for 2 states"):
        Lifecycle("alias", states, "FREE HELD\nclaim HELD")
    with pytest.raises(ValueError, match="TAKEN"):
        Lifecycle("alias", states, "FREE HELD\nclaim TAKEN =")


def test_a_refusal_says_the_state_and_what_would_be_allowed() -> None:
    aggregate = worlds.SANDBOXES.reach("state", "PENDING", "request_pause")
    with pytest.raises(Refused) as caught:
        aggregate.request_pause(worlds.T0, "c", worlds.LATER)
    assert caught.value.code == "sandbox.illegal-state"
    assert caught.value.details == {"state": "PENDING", "allowed": ["RUNNING", "PAUSED"]}
