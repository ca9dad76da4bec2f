"""Every event survives the log, and yesterday's log still decodes."""

from __future__ import annotations

import contextlib
import itertools
from datetime import timedelta
from pathlib import Path
from typing import Any

import orjson
import pytest
from hypothesis import given
from hypothesis import strategies as st
from support import examples, gwt, strategies, worlds

from domain import catalogue
from domain.kernel.aggregate import Event
from domain.kernel.command import canonical
from domain.kernel.errors import Refused
from domain.kernel.registry import AGGREGATES, EVENTS, decode_event

pytestmark = pytest.mark.quick

catalogue.load()
OURS = {topic: cls for topic, cls in EVENTS.items() if cls.__module__.startswith("domain.")}
GOLDEN = Path(__file__).parents[1] / "golden" / "events.jsonl"
LINES = [orjson.loads(line) for line in GOLDEN.read_bytes().splitlines()] if GOLDEN.exists() else []


@pytest.mark.parametrize("topic", list(OURS))
@examples.times(0.4)
@given(data=st.data())
def test_every_event_survives_the_log(topic: str, data: st.DataObject) -> None:
    event = data.draw(strategies.event(OURS[topic]))
    stored = orjson.loads(canonical(event.data()))
    again = decode_event(event.originator_id, "x", event.timestamp, topic, event.class_version, event.originator_version, stored)
    assert again == event
    assert again.data() == event.data()


def test_the_golden_log_has_every_event_type() -> None:
    known = {line["type"] for line in LINES}
    forgotten = sorted(OURS.keys() - known)
    missing = {topic: example(topic) for topic in forgotten}
    lines = "\n".join(orjson.dumps(line, option=orjson.OPT_SORT_KEYS).decode() for line in missing.values())
    assert not missing, f"append to {GOLDEN.name} (and never change what is there):\n{lines}"


@pytest.mark.parametrize("line", LINES, ids=[line["type"] for line in LINES])
def test_yesterdays_log_still_decodes(line: dict[str, Any]) -> None:
    event = decode_event("x-1", line["aggregate"], gwt.T0, line["type"], line["schema"], 3, line["data"])
    assert type(event) is OURS[line["type"]]
    if line["schema"] == event.class_version:
        assert orjson.loads(canonical(event.data())) == line["data"]


def test_an_event_from_the_future_or_of_no_known_type_is_not_guessed_at() -> None:
    with pytest.raises(LookupError, match="unknown event type"):
        decode_event("x-1", "sandbox", gwt.T0, "sandbox.beamed-up", 1, 1, {})
    with pytest.raises(LookupError, match="knows up to 1"):
        decode_event("x-1", "node", gwt.T0, "node.cordoned", 2, 1, {})


def example(topic: str) -> dict[str, Any]:
    """One such event, as it happens on the way through the tables."""
    for kind in AGGREGATES.keys() & worlds.WORLDS.keys():
        for event in happenings(kind):
            if topic == event.TOPIC:
                return {"aggregate": kind, "type": topic, "schema": event.class_version, "data": event.data()}
    return {"type": topic, "data": "reach it in tests/support/worlds.py"}


def happenings(kind: str) -> list[Event]:
    """Every event on the ways to every state and of every row's call."""
    world, found = worlds.WORLDS[kind], []
    for attribute, states in world.states.items():
        for state, row in itertools.product(states, world.rows):
            known = gwt.lived(world.create, *world.way(attribute, state, row))
            with contextlib.suppress(Refused):
                step = world.step(row, known.aggregate)
                gwt.call(known.aggregate, step, known.at + timedelta(seconds=step.after))
            found += known.aggregate.collect_events()
    return found
