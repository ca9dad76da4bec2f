"""The compat matrix, as reference/cubesandbox.md §6 and its acceptance scenario 24 have it."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from domain.nodes.orders import Versions
from domain.templates.compat import Compat, CompatSummary, Policy, evaluate, judge, overall, summarise, when_offline

pytestmark = pytest.mark.quick

BOUND = Versions(guest_image="g1", agent="a1", kernel="k1")


@pytest.mark.parametrize(
    ("current", "policy", "expected"),
    [
        (Versions(guest_image="g1", agent="a1", kernel="k1"), Policy.STRICT, Compat.OK),
        (Versions(guest_image="g2", agent="a1", kernel="k1"), Policy.STRICT, Compat.STALE),
        (Versions(guest_image="g1", agent="a2"), Policy.STRICT, Compat.STALE),
        (Versions(guest_image="g1", agent="a2"), Policy.GUEST_ONLY, Compat.OK),
        (Versions(guest_image="g1"), Policy.STRICT, Compat.UNKNOWN),
        (Versions(guest_image="g2"), Policy.STRICT, Compat.STALE),
        (Versions(agent="a2"), Policy.STRICT, Compat.STALE),
        (Versions(guest_image="g1", agent="a1", kernel="k2"), Policy.STRICT, Compat.OK),
        (Versions(guest_image="g1", agent="a2"), "whatever", Compat.STALE),
        (Versions(guest_image="g1", agent="a2"), "", Compat.STALE),
        (Versions(guest_image=" g1 ", agent="a1"), Policy.STRICT, Compat.OK),
        (Versions(guest_image="G1", agent="a1"), Policy.STRICT, Compat.STALE),
        (Versions(guest_image="g1", agent="Unknown"), Policy.STRICT, Compat.UNKNOWN),
        (Versions(), Policy.STRICT, Compat.UNKNOWN),
        (None, Policy.STRICT, Compat.UNKNOWN),
    ],
)
def test_a_replica_is_judged_by_guest_image_and_agent(current: Versions | None, policy: str, expected: Compat) -> None:
    assert evaluate(BOUND, current, policy) is expected


def test_a_replica_that_was_bound_to_nothing_is_unknown() -> None:
    assert evaluate(Versions(), BOUND) is Compat.UNKNOWN
    assert evaluate(Versions(guest_image="g1"), BOUND) is Compat.UNKNOWN
    assert evaluate(Versions(guest_image="g2"), BOUND) is Compat.STALE


def test_a_node_that_is_not_heard_makes_ok_unknown_and_leaves_stale() -> None:
    assert {last: when_offline(last) for last in Compat} == {
        Compat.OK: Compat.UNKNOWN,
        Compat.STALE: Compat.STALE,
        Compat.UNKNOWN: Compat.UNKNOWN,
        Compat.MISSING: Compat.MISSING,
    }
    assert judge(BOUND, BOUND, online=True) is Compat.OK
    assert judge(BOUND, BOUND, online=False) is Compat.UNKNOWN
    assert judge(BOUND, Versions(guest_image="g2"), online=False) is Compat.STALE


def test_versions_that_come_back_make_it_ok_again() -> None:
    history = [Versions(guest_image=image, agent="a1") for image in ("g1", "g2", "g1")]
    assert [evaluate(BOUND, current) for current in history] == [Compat.OK, Compat.STALE, Compat.OK]


@pytest.mark.parametrize(
    ("cells", "expected"),
    [
        ([], Compat.OK),
        ([Compat.OK, Compat.OK], Compat.OK),
        ([Compat.UNKNOWN, Compat.MISSING, Compat.STALE], Compat.STALE),
        ([Compat.OK, Compat.MISSING, Compat.UNKNOWN], Compat.MISSING),
        ([Compat.OK, Compat.UNKNOWN, Compat.MISSING], Compat.UNKNOWN),
    ],
)
def test_a_row_in_one_word(cells: list[Compat], expected: Compat) -> None:
    assert overall(cells) is expected


def test_the_summary_counts_cells_rows_and_nodes() -> None:
    rows = {
        "tpl-a": {"n1": Compat.STALE, "n2": Compat.STALE, "n3": Compat.OK},
        "tpl-b": {"n1": Compat.STALE, "n2": Compat.MISSING, "n3": Compat.UNKNOWN},
        "tpl-c": {"n1": Compat.OK, "n2": Compat.MISSING, "n3": Compat.OK},
    }
    assert summarise(rows) == CompatSummary(stale_templates=2, stale_replicas=3, affected_nodes=2, missing_replicas=2, unknown_replicas=1)
    assert summarise({}) == CompatSummary()


VERSIONS = st.builds(
    Versions,
    guest_image=st.sampled_from(["", "g1", "g2"]),
    agent=st.sampled_from(["", "a1", "a2"]),
    kernel=st.sampled_from(["", "k1", "k2"]),
)


@given(bound=VERSIONS, current=VERSIONS)
def test_the_judgement_is_symmetric_and_blind_to_the_kernel(bound: Versions, current: Versions) -> None:
    assert evaluate(bound, current) is evaluate(current, bound)
    assert evaluate(bound, current) is evaluate(bound, current.model_copy(update={"kernel": "another"}))
    assert evaluate(bound, bound) is not Compat.STALE
