"""The dead are shown for an hour (reference/miren-sandbox.md §3.7, scenario 26)."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from typing import Any

import pytest

from domain.sandboxes.sandbox import Sandbox, SandboxState
from handlers.processes import forgetting, sandboxes

pytestmark = pytest.mark.quick


def passes(place: Any, **time: float) -> None:
    place.plane.control.clock = lambda: datetime.now(UTC) + timedelta(**time)


async def died(place: Any, template: str) -> str:
    sandbox = await place.sandbox(template)
    await place.do("sandbox.delete", {"sandbox_id": sandbox, "wait_s": 10})
    await place.plane.control.fleet.reached(await place.plane.control.position(Sandbox, "default", sandbox))
    return sandbox


def test_the_dead_are_forgotten_an_hour_after_their_death_and_one_that_cannot_let_go_is_kept_alone(at, monkeypatch) -> None:
    async def test(place) -> None:
        template, control = await place.template(), place.plane.control
        lives, one, two = await place.sandbox(template), await died(place, template), await died(place, template)
        passes(place, minutes=59)
        await sandboxes.pump(control, "default", one)
        assert await forgetting.forget(control) == 0, "looking at it does not make it younger, nor older"
        passes(place, minutes=61)
        pump = sandboxes.pump

        async def broken(control: Any, project: str, name: str) -> None:
            if name == one:
                raise OSError(5, "told to fail")
            await pump(control, project, name)

        with monkeypatch.context() as patch:
            patch.setattr(sandboxes, "pump", broken)
            assert await forgetting.forget(control) == 1
        forgotten = {name: (await place.get(Sandbox, name)).forgotten for name in (lives, one, two)}
        assert forgotten == {lives: False, one: False, two: True}
        await control.fleet.reached(await control.position(Sandbox, "default", two))
        assert await forgetting.forget(control) == 1
        await control.fleet.reached(await control.position(Sandbox, "default", one))
        assert control.fleet.dead == {}
        assert (await place.get(Sandbox, one)).state is SandboxState.DEAD, "the log has it for ever"
        assert (await place.do("sandbox.delete", {"sandbox_id": one}))["state"] == "DEAD", "and its commands their answers"

    at(test)
