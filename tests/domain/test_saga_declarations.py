"""A saga that cannot work is refused when it is declared, and the order of its actions follows from what they need."""

from __future__ import annotations

import pytest

from domain.kernel.aggregate import Record
from domain.kernel.saga import Action, DefinitionError, Nothing, NoUndo, define, shape

pytestmark = pytest.mark.quick

FREE = NoUndo("it only looks")


class Given(Record):
    name: str


class Leased(Record):
    address: str


class Placed(Record):
    root: str = ""


class Number(Record):
    address: int


class Boot(Given, Leased):
    root: str | None = None


class Booted(Record):
    pid: int


async def do(_context: None, taken: Record) -> Record:
    return taken


async def undo(_context: None, _taken: Record) -> None:
    """Nothing was done."""


def action(name: str, takes: type[Record] = Nothing, gives: type[Record] = Nothing, **more):
    return Action(name, takes, gives, do, **{"undo": undo, **more})


LEASE, PLACE, BOOT = action("lease", Given, Leased), action("place", gives=Placed), action("boot", Boot, Booted)


def test_actions_come_in_the_order_of_what_they_take_and_else_as_they_are_declared() -> None:
    assert define("s", 1, Given, BOOT, LEASE, PLACE).steps == ("lease", "place", "boot")
    assert define("s", 1, Given, PLACE, BOOT, LEASE).steps == ("place", "lease", "boot")
    last = action("place", gives=Placed, after=("watch",))
    assert define("s", 1, Given, last, action("watch", undo=FREE), LEASE).steps == ("watch", "place", "lease")


@pytest.mark.parametrize(
    ("actions", "fault"),
    [
        ((action("look", undo=None),), "look has no undo and does not say why"),
        ((action("look"), action("look")), "two actions are called look"),
        ((LEASE, action("again", gives=Leased)), "address comes from 2 places"),
        ((action("rename", gives=Given),), "name comes from 2 places"),
        ((BOOT,), "boot takes address, which nobody gives"),
        ((BOOT, action("lease", gives=Number)), "boot takes address as str, and it comes as int"),
        ((action("look", after=("leap",)),), "look comes after leap, which there is not"),
        ((action("turn", Booted, Leased), BOOT), "cycle among turn, boot"),
        ((action("turn", Leased, Leased),), "cycle among turn"),
    ],
)
def test_what_cannot_work_is_refused(actions, fault: str) -> None:
    with pytest.raises(DefinitionError) as refused:
        define("s", 1, Given, *actions)
    assert refused.value.faults == (fault,)


def test_all_faults_are_told_at_once() -> None:
    with pytest.raises(DefinitionError) as refused:
        define("s", 1, Nothing, action("look", undo=None), BOOT)
    assert len(refused.value.faults) == 3


def test_an_action_gets_what_it_takes_from_what_was_given_and_made() -> None:
    saga = define("s", 1, Given, LEASE, BOOT)
    outputs = {"lease": {"address": "10.0.0.2", "of-a-newer-program": 1}}
    assert saga.gather(Boot, Given(name="one"), outputs) == Boot(name="one", address="10.0.0.2")
    with pytest.raises(ValueError, match="address"):
        saga.gather(Boot, Given(name="one"), {})


def test_the_shape_says_all_that_an_unfinished_execution_relies_on() -> None:
    saga = define("s", 2, Given, LEASE, action("look", undo=FREE, after=("lease",)), BOOT, resumes=(1,))
    assert shape(saga) == {
        "saga": "s/2",
        "resumes": [1],
        "given": {"name": "str"},
        "actions": {
            "lease": {"takes": {"name": "str"}, "gives": {"address": "str"}, "undo": True},
            "look": {"takes": {}, "gives": {}, "undo": False, "after": ["lease"]},
            "boot": {"takes": {"address": "str", "name": "str", "root": "str | None?"}, "gives": {"pid": "int"}, "undo": True},
        },
    }
