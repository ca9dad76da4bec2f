"""What is known of a sandbox's ports follows what its node sees, and only that."""

from __future__ import annotations

from datetime import timedelta

import pytest
from support import worlds
from support.gwt import T0, did, given

from domain.kernel.errors import Refused
from domain.nodes.orders import PortStatus

pytestmark = pytest.mark.quick

OPEN, SHUT, DECLARED = (PortStatus(port=80, status=status) for status in ("listening", "closed", "declared"))
STARTED = did("mark_running", 1, "sim", "", (DECLARED,))


def seen(*ports: PortStatus, generation: int = 0, after: float = 0):
    return did("ports_seen", generation, T0 + timedelta(seconds=after), ports)


def box():
    return worlds.sandbox(ports=(80,))


def test_a_change_is_news_once() -> None:
    given(box, STARTED).when("ports_seen", 0, T0, (OPEN,)).then("sandbox.ports-changed", ports=(OPEN,))
    given(box, STARTED, seen(OPEN)).when("ports_seen", 0, T0 + timedelta(seconds=9), (OPEN,)).then_nothing()


def test_what_has_listened_is_closed_also_for_a_node_that_does_not_remember() -> None:
    given(box, STARTED, seen(OPEN)).when("ports_seen", 0, T0 + timedelta(seconds=9), (DECLARED,)).then(
        "sandbox.ports-changed", ports=(SHUT,)
    )
    given(box, STARTED).when("ports_seen", 0, T0, (DECLARED,)).then_nothing()


def test_what_is_older_or_of_another_machine_or_was_never_declared_is_no_news() -> None:
    given(box, STARTED, seen(OPEN, after=5)).when("ports_seen", 0, T0, (SHUT,)).then_nothing()
    given(box, STARTED).when("ports_seen", 1, T0, (OPEN,)).then_nothing()
    given(box, STARTED).when("ports_seen", 0, T0, (PortStatus(port=81, status="listening"),)).then_nothing()


def test_only_a_declared_port_of_one_that_lives_can_be_waited_for() -> None:
    assert given(box, STARTED, seen(OPEN)).aggregate.require_port(80) == OPEN
    assert given(box).aggregate.require_port(80) == DECLARED
    with pytest.raises(Refused) as caught:
        given(box, STARTED).aggregate.require_port(81)
    assert (caught.value.code, caught.value.details) == ("sandbox.no-port", {"ports": [80]})
    with pytest.raises(Refused) as caught:
        given(box, STARTED, did("exited", 0, 1)).aggregate.require_port(80)
    assert caught.value.code == "sandbox.illegal-state"
