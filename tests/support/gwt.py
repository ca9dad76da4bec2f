"""given / when / then over aggregates: ``then`` runs the command once more and demands silence.

    given(worlds.sandbox, did("request_pause", "c1", LATER)).when("paused", "c1").then("sandbox.paused", state="PAUSED")

Time is virtual: every step happens one second after the one before it, unless it says ``after=``.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from typing import Any

from domain.kernel.aggregate import Aggregate, Event
from domain.kernel.errors import Refused

T0 = datetime(2026, 9, 1, 12, tzinfo=UTC)


@dataclass(frozen=True)
class Step:
    """One call of a method; ``after`` seconds after the step before it."""

    method: str
    args: tuple[Any, ...] = ()
    kwargs: dict[str, Any] = field(default_factory=dict)
    after: float = 1


def did(method: str, *args: Any, after: float = 1, **kwargs: Any) -> Step:
    return Step(method, args, kwargs, after)


def call(aggregate: Aggregate, step: Step, at: datetime) -> Any:
    method = getattr(aggregate, step.method)
    return method(*step.args, **step.kwargs) if step.method.startswith("require_") else method(at, *step.args, **step.kwargs)


def given(start: Aggregate | Callable[[], Aggregate], *past: Step | Event) -> Given:
    """An aggregate, or something that makes one, and what has happened to it since: calls, or events as they stand in the log."""
    known = lived(start, *past)
    known.aggregate.collect_events()
    return known


def lived(start: Aggregate | Callable[[], Aggregate], *past: Step | Event) -> Given:
    """The same, with its events still pending."""
    aggregate = start if isinstance(start, Aggregate) else start()
    at = aggregate.modified_on
    for past_step in past:
        if isinstance(past_step, Event):
            past_step.mutate(aggregate)
            at = past_step.timestamp
        else:
            at += timedelta(seconds=past_step.after)
            call(aggregate, past_step, at)
    return Given(aggregate, at)


@dataclass
class Given:
    aggregate: Any
    at: datetime

    def when(self, method: str, *args: Any, after: float = 1, **kwargs: Any) -> Then:
        step = did(method, *args, after=after, **kwargs)
        at = self.at + timedelta(seconds=after)
        try:
            answer = call(self.aggregate, step, at)
        except Refused as refusal:
            return Then(self.aggregate, step, at, [], None, refusal)
        return Then(self.aggregate, step, at, list(self.aggregate.collect_events()), answer, None)


@dataclass
class Then:
    aggregate: Any
    step: Step
    at: datetime
    events: list[Any]
    answer: Any
    refusal: Refused | None

    def then(self, *topics: str, again: str = "silence", **attributes: Any) -> Given:
        """These events, these attributes now; and the same command again is met with ``again``: silence, news, or a refusal's code."""
        if self.refusal is not None:
            raise AssertionError(f"refused: {self.refusal!r}") from self.refusal
        assert tuple(event.TOPIC for event in self.events) == topics
        for name, value in attributes.items():
            assert getattr(self.aggregate, name) == value, name
        if topics:
            self._again(again)
        return Given(self.aggregate, self.at)

    def then_nothing(self) -> Given:
        """Already so, or too late to matter."""
        return self.then()

    def then_refused(self, code: str, **details: Any) -> Refused:
        assert self.refusal is not None, f"accepted: {[event.TOPIC for event in self.events]}"
        assert self.refusal.code == code
        assert not self.aggregate.pending_events
        for name, value in details.items():
            assert self.refusal.details[name] == value, name
        return self.refusal

    def _again(self, expected: str) -> None:
        if expected == "news":
            return
        try:
            call(self.aggregate, self.step, self.at)
            outcome = "silence"
        except Refused as refusal:
            outcome = refusal.code
        news = [event.TOPIC for event in self.aggregate.collect_events()]
        assert (outcome, news) == (expected, []), f"a repeated {self.step.method} is not met with {expected}"
