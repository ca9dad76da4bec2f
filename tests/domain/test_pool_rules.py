"""Pools: how many members, which of them go, how long it waits after crashes (reference/miren-sandbox.md §1.10). Time is virtual."""

from __future__ import annotations

from datetime import datetime, timedelta
from typing import Any

import pytest
from hypothesis import given as forall
from hypothesis import strategies as st
from support.gwt import T0

from domain.kernel.errors import Invalid, Refused
from domain.sandboxes.pool import HARD_MAXIMUM, Pool, PoolSettings, PoolState, back_off
from domain.sandboxes.pool_commands import PoolSet

pytestmark = pytest.mark.quick

TEMPLATE = "tpl-" + "1" * 24


def at(seconds: float) -> datetime:
    return T0 + timedelta(seconds=seconds)


def pool(desired: int = 3, ready: int = 0, **settings: Any) -> Pool:
    """With ``ready`` members that run, named m1 …, ready one second after one another."""
    made = Pool.create(TEMPLATE, T0, PoolSettings(desired=desired, **settings))
    for number in range(1, ready + 1):
        made.add(T0, f"m{number}", number)
        made.ready(at(number), f"m{number}")
    return made


def test_it_creates_what_it_lacks_and_counts_what_is_on_the_way() -> None:
    made = pool(3)
    assert made.plan(T0, {}).create == 3
    made.add(T0, "m1", 1)
    assert made.plan(T0, {}).create == 2
    assert made.waiting == [], "it does not run yet"
    made.ready(at(1), "m1")
    assert made.waiting == ["m1"]


def test_numbers_are_the_lowest_free_ones_and_a_member_is_added_once() -> None:
    made = pool(3, ready=3)
    made.left(at(200), "m2")
    made.add(at(201), "m4", 4)
    made.add(at(202), "m4", 4)
    assert {name: member.number for name, member in made.members.items()} == {"m1": 1, "m3": 3, "m4": 2}


def test_there_are_never_more_than_the_maximum() -> None:
    made = pool(HARD_MAXIMUM, ready=HARD_MAXIMUM)
    made.add(at(60), "more", HARD_MAXIMUM + 1)
    assert len(made.members) == HARD_MAXIMUM == 20
    small = pool(2, maximum=2)
    small.configure(at(1), PoolSettings(desired=9, maximum=2))
    assert small.plan(at(1), {}).create == 2


def test_too_many_go_those_that_do_not_run_yet_first_then_by_the_oldest_use() -> None:
    made = pool(4, ready=3)
    made.add(at(5), "new", 4)
    made.configure(at(6), PoolSettings(desired=1))
    used = {"m1": at(50), "m2": at(10), "m3": at(30), "new": at(60)}
    assert made.plan(at(60), used).retire == ("new", "m2", "m3")


def test_one_that_nobody_used_for_too_long_goes_and_one_less_is_wanted() -> None:
    made = pool(3, ready=3, idle_s=600)
    used = {"m1": at(500), "m2": at(100), "m3": at(300)}
    assert made.plan(at(600), used).idle == ()
    assert made.plan(at(901), used).idle == ("m2", "m3"), "the oldest use first"
    assert made.plan(at(600), used).again_at == at(630), "looked for every 30 seconds"
    made.retire(at(901), "m2", idle=True)
    assert (made.settings.desired, made.members["m2"].leaving) == (2, True)
    made.left(at(905), "m2")
    assert made.plan(at(906), used).create == 0


def test_a_member_whose_use_is_not_known_counts_as_in_use() -> None:
    assert pool(1, ready=1, idle_s=60).plan(at(10_000), {}).idle == ()


def test_a_hand_over_takes_a_member_out_and_another_one_is_wanted() -> None:
    made = pool(2, ready=2, idle_s=600)
    assert made.hand_over(at(500), "m1")
    assert (made.waiting, made.plan(at(501), {}).create) == (["m2"], 1)
    assert not made.hand_over(at(501), "m1"), "somebody has it"
    assert made.plan(at(1000), {"m2": at(2)}).idle == (), "as long as somebody comes for them they are in use"


@pytest.mark.parametrize(("crashes", "seconds"), [(0, 0), (1, 10), (2, 20), (3, 40), (6, 320), (7, 640), (8, 900), (500, 900)])
def test_the_back_off_doubles_up_to_a_quarter_of_an_hour(crashes: int, seconds: float) -> None:
    assert back_off(crashes).total_seconds() == seconds


def test_after_quick_crashes_nothing_is_created_for_a_while_and_one_at_most_stays() -> None:
    made = pool(3, ready=3)
    made.left(at(30), "m1", crashed=True)
    assert (made.crashes, made.cooldown_until) == (1, at(40))
    cooling = made.plan(at(35), {"m2": at(2), "m3": at(3)})
    assert (cooling.create, cooling.retire, cooling.again_at) == (0, ("m2",), at(40))
    assert made.plan(at(40), {}).create == 1
    made.add(at(41), "m4", 4)
    made.left(at(45), "m4", crashed=True)
    assert (made.crashes, made.cooldown_until) == (2, at(65))


def test_a_pool_that_dies_of_one_cause_counts_once_and_late_or_wanted_ends_not_at_all() -> None:
    made = pool(3, ready=3)
    for name in ("m1", "m2"):
        made.left(at(30), name, crashed=True)
    assert made.crashes == 1
    made.left(at(61), "m3", crashed=True)
    assert made.crashes == 1, "it lived for more than a minute"
    retired = pool(1, ready=1)
    retired.retire(at(5), "m1")
    retired.left(at(6), "m1", crashed=True)
    assert (retired.crashes, retired.cooldown_until) == (0, None)


def test_a_member_that_runs_long_enough_makes_the_crashes_forgotten() -> None:
    made = pool(2, ready=2)
    made.left(at(10), "m1", crashed=True)
    made.recover(at(121))
    assert made.crashes == 1
    made.recover(at(122))
    assert (made.crashes, made.cooldown_until) == (0, None)


def test_one_that_was_deleted_stops_its_members_and_can_be_set_again() -> None:
    made = pool(2, ready=1)
    made.request_delete(at(5))
    made.add(at(6), "m9", 2)
    plan = made.plan(at(6), {"m1": at(1)})
    assert (plan.create, plan.retire, plan.finish) == (0, ("m1",), True)
    made.finish(at(6))
    assert made.state is PoolState.DELETING, "not while it has a member"
    with pytest.raises(Refused):
        made.hand_over(at(7), "m1")
    made.left(at(8), "m1")
    made.finish(at(9))
    assert made.state is PoolState.GONE
    made.configure(at(10), PoolSettings(desired=1))
    assert made.plan(at(10), {}).create == 1


def test_an_empty_one_that_wants_nothing_goes_after_an_hour() -> None:
    made = pool(0)
    assert (made.plan(at(3599), {}).finish, made.plan(at(1), {}).again_at) == (False, at(3600))
    assert made.plan(at(3600), {}).finish
    made.finish(at(3600))
    assert made.state is PoolState.GONE


@pytest.mark.parametrize("body", ['"desired":21', '"maximum":0', '"desired":5,"maximum":4', '"idle_s":-2', '"name":"x"'])
def test_settings_that_make_no_sense_are_refused(body: str) -> None:
    with pytest.raises(Invalid):
        PoolSet.parse(f'{{"template":"base",{body}}}'.encode())


STEPS = st.lists(st.tuples(st.sampled_from(["add", "ready", "left", "crash", "give", "set"]), st.integers(0, 25)), max_size=60)


@forall(steps=STEPS)
def test_whatever_happens_it_keeps_its_bounds(steps: list[tuple[str, int]]) -> None:
    """Never more members than the maximum, numbers without repetition, and a plan that leads to what is wanted."""
    made, now, serial = pool(5), T0, 0
    for step, number in steps:
        now += timedelta(seconds=number)
        names = sorted(made.members)
        name = names[number % len(names)] if names else "none"
        match step:
            case "add":
                serial = made.serial
                made.add(now, f"x{serial + 1}", serial + 1)
            case "ready":
                made.ready(now, name)
            case "left" | "crash":
                made.left(now, name, crashed=step == "crash")
            case "give" if name in made.waiting:
                made.hand_over(now, name)
            case "set":
                made.configure(now, PoolSettings(desired=min(number, 20)))
        plan = made.plan(now, {})
        numbers = [member.number for member in made.members.values()]
        assert len(numbers) == len(set(numbers)) <= HARD_MAXIMUM
        assert len(made.members) + plan.create - len(plan.retire) <= HARD_MAXIMUM
        assert not (plan.create and plan.retire)
