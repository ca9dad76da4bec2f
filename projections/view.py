"""A view: which events it reads, what they do to its items, and how its items are asked for.

    VIEW = View("jobs", noun="job", key="job_id", fields={"job_id": "", "status": "PENDING", ...}, indexed=("status",))

    @VIEW.on("job.created")
    def created(state: State, fact: Fact) -> None:
        state.put(fact.project, fact.id, VIEW.item(job_id=fact.id))

Apply functions are pure: the same events in the same order give the same items, in every store. They take no clock, no randomness and no
other view's state, and never refuse: the log is what happened.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypeAlias

from domain.kernel.errors import Refused
from domain.kernel.ids import SYSTEM_PROJECT
from projections.facts import Fact
from projections.state import State
from projections.store import ITEMS, Item, Reader

Apply: TypeAlias = Callable[[State, Fact], None]
Update: TypeAlias = Callable[[Item, Fact], None]


@dataclass(frozen=True, slots=True)
class Page:
    """Items with their keys, and whether there are more behind them."""

    items: list[tuple[str, Item]]
    more: bool


@dataclass(frozen=True, slots=True)
class Ask:
    """A verb of a view's own: the fields that it is ``asked`` by, and those that are ``shown``, both with values of their types.

    ``answer``, of a reader, a project, what was asked, a key and a limit, finds at most so many behind the key. It may raise ``Refused``.
    """

    asked: Mapping[str, Any]
    shown: Mapping[str, Any]
    answer: Callable[[Reader, str, Mapping[str, Any], str, int], Page]


class View:
    """Definition of one view. Queries use the methods; a view whose answers are computed overrides them.

    ``schema`` grows whenever code changes what the same events give: the projector then rebuilds the view by itself. ``shared``: items
    belong to the installation (project ``system``) and every project may read them. ``fields`` are the public fields with their initial
    values; names that begin with ``_`` are the view's own and are not returned. ``lookups`` are fields that apply functions search by.
    ``asks``: verbs beside ``list``, ``get`` and ``summary``.
    """

    def __init__(
        self,
        name: str,
        *,
        noun: str,
        key: str,
        fields: Mapping[str, Any],
        schema: int = 1,
        shared: bool = False,
        indexed: Sequence[str] = (),
        lookups: Sequence[str] = (),
        counted: str | None = None,
        asks: Mapping[str, Ask] | None = None,
    ) -> None:
        self.name = name
        self.noun = noun
        self.key = key
        self.fields = dict(fields)
        self.schema = schema
        self.shared = shared
        self.indexed = tuple(dict.fromkeys((*indexed, *lookups)))
        self.lookups = tuple(lookups)
        self.counted = counted
        self.asks = dict(asks or {})
        self.routes: dict[str, Apply] = {}
        self._containers = [(name, value) for name, value in self.fields.items() if isinstance(value, dict | list)]

    @property
    def verbs(self) -> tuple[str, ...]:
        """Which queries it answers."""
        return ("list", "get", *(("summary",) if self.counted else ()), *self.asks)

    def on(self, *types: str) -> Callable[[Apply], Apply]:
        """Say which events a function applies. Raises ``ValueError`` when another one has them already."""

        def register(apply: Apply) -> Apply:
            for name in types:
                if name in self.routes:
                    raise ValueError(f"view {self.name} applies {name} twice")
                self.routes[name] = apply
            return apply

        return register

    def update(self, *types: str) -> Callable[[Update], Update]:
        """As ``on``, for functions that only change the item of the aggregate that the event is about."""

        def register(update: Update) -> Update:
            def apply(state: State, fact: Fact) -> None:
                item = state.edit(fact.project, fact.id)
                if item is not None:
                    update(item, fact)

            self.on(*types)(apply)
            return update

        return register

    def item(self, **values: Any) -> Item:
        """A new item: every public field has a value. Raises ``KeyError`` for a public field that was not declared."""
        made = self.fields | values
        if len(made) != len(self.fields):
            raise KeyError(f"view {self.name} has no fields {sorted(values.keys() - self.fields.keys())}")
        for name, value in self._containers:
            if name not in values:
                made[name] = value.copy()
        return made

    def scope(self, project: str) -> str:
        """Whose items a caller of this project sees."""
        return SYSTEM_PROJECT if self.shared else project

    def get(self, reader: Reader, project: str, id: str) -> Item:  # noqa: A002
        """One item. Raises ``Refused("<noun>.not-found")``."""
        item = reader.get(ITEMS, self.scope(project), id)
        if item is None:
            raise Refused(f"{self.noun}.not-found", f"no {self.noun} {id!r}", details={"id": id})
        return public(item)

    def list(self, reader: Reader, project: str, where: Mapping[str, Any], after: str, limit: int) -> Page:
        """At most ``limit`` items after a key, ascending."""
        rows = reader.scan(ITEMS, self.scope(project), where, after, limit + 1)
        return Page([(id_, public(item)) for _, id_, item in rows[:limit]], more=len(rows) > limit)

    def summary(self, reader: Reader, project: str) -> Item:
        """How many items there are, altogether and by ``counted``."""
        if self.counted is None:
            raise Refused("query.unknown", f"{self.name} has no summary")
        counts = reader.count(ITEMS, self.scope(project), self.counted)
        return {"total": sum(counts.values()), f"by_{self.counted}": dict(sorted(counts.items()))}


def public(item: Item) -> Item:
    """An item without the view's own notes."""
    return {name: value for name, value in item.items() if name[0] != "_"}
