"""Reports that the control plane does not understand: they hold nobody up, change nothing, and are kept where somebody finds them."""

from __future__ import annotations

from typing import Any

import pytest
from support.waiting import eventually

from bus.dead import DeadLetters
from domain.nodes.orders import Order, ReportKind, Verb
from domain.templates.template import Template, TemplateState

pytestmark = pytest.mark.quick


async def told_odd(place: Any, verb: Verb, body: dict[str, Any]) -> None:
    """An order of this verb tells that, and goes on: the template is ready all the same."""
    place.node.hold = lambda order: order.verb == verb
    made = await place.do("template.create", {"image": "oci:/images/demo"})

    async def in_hand() -> Order | None:
        return next(iter(place.node.did(verb)), None)

    order = await eventually(in_hand)
    place.node.hold = lambda order: False
    await place.node.tell(order, ReportKind.PROGRESS, body, suffix=":odd")
    await place.node.answer(order)

    async def ready() -> bool:
        return (await place.get(Template, made["template_id"])).state is TemplateState.READY

    await eventually(ready)  # tried again and again it would hold up what follows for minutes


@pytest.mark.parametrize("verb", [Verb.ARTIFACT_BUILD, Verb.REPLICA_PREPARE])
def test_a_phase_that_nobody_knows_is_a_sign_of_life_and_no_more(at, verb: Verb) -> None:
    async def test(place) -> None:
        await told_odd(place, verb, {"phase": "DREAMING"})
        assert await DeadLetters(place.nc).list() == []

    at(test)


def test_a_report_that_cannot_be_read_is_a_dead_letter_at_once(at) -> None:
    async def test(place) -> None:
        await told_odd(place, Verb.ARTIFACT_BUILD, {"phase": "PULLING", "fraction": "a lot"})
        (letter,) = await DeadLetters(place.nc).list()
        assert "report.invalid" in letter.reason
        assert letter.body is not None
        assert b"a lot" in letter.body

    at(test)
