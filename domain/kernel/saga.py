"""Sagas: something long as a declaration of actions, each with its undo beside it (reference/miren-sandbox.md §2.5).

An action takes a record and gives a record. The fields are keys: what one action gives another may take, and what nobody gives must be
given to the saga at its start. So the order of the actions follows from what they need; where that leaves a choice, they stand as declared.
``after`` is for an order that no value shows.

What an action works with (drivers, stores, clocks) is its context, which is handed in and never kept. What it gives is kept as JSON.

- An action may run twice: whoever runs it may die before it is known that it ran. It finds what the first time has made, and adopts it.
- An undo gets what its action got, not what it gave, since that may be lost with the reply. It also runs for an action that failed,
  bears that nothing was done, and may run twice.

``define`` looks at all of it at once, when the module is imported: a declaration that cannot work never runs. The shape of a version is
locked (``tests/golden/sagas.jsonl``): executions of it may be unfinished somewhere, and are gone on with by whoever knows that version.
"""

from __future__ import annotations

import types
from collections import Counter
from collections.abc import Awaitable, Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final, Generic, TypeVar, Union, get_args, get_origin

from domain.kernel.aggregate import Record

C = TypeVar("C")
I = TypeVar("I", bound=Record)  # noqa: E741 - input
O = TypeVar("O", bound=Record)  # noqa: E741 - output
R = TypeVar("R", bound=Record)

Output = dict[str, Any]
"""What an action gave, JSON-ready."""


class Nothing(Record):
    """What an action gives that only has an effect."""


@dataclass(frozen=True, slots=True)
class NoUndo:
    """Said in the place of an undo, with the reason, so that none is ever missing by mistake."""

    because: str


@dataclass(frozen=True, slots=True)
class Action(Generic[C, I, O]):
    """One step of a saga. ``after`` names actions that come before this one although it takes nothing of theirs."""

    name: str
    takes: type[I]
    gives: type[O]
    do: Callable[[C, I], Awaitable[O]]
    undo: Callable[[C, I], Awaitable[None]] | NoUndo | None = None
    after: tuple[str, ...] = ()


class DefinitionError(ValueError):
    """A declaration that cannot work. ``faults``: all that is wrong with it."""

    def __init__(self, saga: str, faults: Sequence[str]) -> None:
        super().__init__(f"saga {saga}: {'; '.join(faults)}")
        self.faults = tuple(faults)


@dataclass(frozen=True, slots=True)
class Definition(Generic[C]):
    """A saga that can work. ``actions`` are in the order in which they run. Made by ``define``."""

    name: str
    version: int
    given: type[Record]
    actions: tuple[Action[C, Any, Any], ...]
    resumes: frozenset[int]
    """Older versions whose unfinished executions this one goes on with."""
    producers: Mapping[str, str]
    """Which action gives a key."""

    @property
    def label(self) -> str:
        """``create-sandbox/1``: how an execution says which declaration it follows."""
        return f"{self.name}/{self.version}"

    @property
    def steps(self) -> tuple[str, ...]:
        return tuple(action.name for action in self.actions)

    def follows(self, label: str) -> bool:
        """Can an execution that began under ``label`` be gone on with?"""
        name, _, version = label.partition("/")
        return name == self.name and (version == str(self.version) or version in map(str, self.resumes))

    def gather(self, wanted: type[R], given: Record, outputs: Mapping[str, Output]) -> R:
        """A record of what was given and of what the actions that are done gave. Raises ``ValueError`` when something is not there."""
        values: dict[str, Any] = {}
        for key in wanted.model_fields:
            made = outputs.get(self.producers.get(key, ""), {})
            if key in made:
                values[key] = made[key]
            elif key in self.given.model_fields:
                values[key] = getattr(given, key)
        return wanted.model_validate(values)


def define(name: str, version: int, given: type[Record], *actions: Action[C, Any, Any], resumes: Sequence[int] = ()) -> Definition[C]:
    """A saga of ``actions``. Raises ``DefinitionError``."""
    faults = [*_names(actions), *_undos(actions), *_producers(given, actions), *_consumers(given, actions)]
    ordered = [] if faults else list(_ordered(actions))
    if len(ordered) < len(actions) and not faults:
        stuck = [action.name for action in actions if action not in ordered]
        faults.append(f"cycle among {', '.join(stuck)}")
    if faults:
        raise DefinitionError(name, faults)
    return Definition(name, version, given, tuple(ordered), frozenset(resumes), _producer(actions))


def shape(saga: Definition[Any]) -> dict[str, Any]:
    """What must not change within a version: the actions in their order, and keys and types of what goes in and out of each."""
    return {
        "saga": saga.label,
        "resumes": sorted(saga.resumes),
        "given": _keys(saga.given),
        "actions": {
            action.name: {
                "takes": _keys(action.takes),
                "gives": _keys(action.gives),
                "undo": not isinstance(action.undo, NoUndo),
                **({"after": list(action.after)} if action.after else {}),
            }
            for action in saga.actions
        },
    }


# -------------------------------------------------------------------------------------------------------------- checks


def _names(actions: Sequence[Action[C, Any, Any]]) -> Iterator[str]:
    yield from (f"two actions are called {name}" for name, count in Counter(a.name for a in actions).items() if count > 1)


def _undos(actions: Sequence[Action[C, Any, Any]]) -> Iterator[str]:
    yield from (f"{action.name} has no undo and does not say why" for action in actions if action.undo is None)


def _producers(given: type[Record], actions: Sequence[Action[C, Any, Any]]) -> Iterator[str]:
    """A key that comes from two places."""
    made = Counter(key for record in (given, *(action.gives for action in actions)) for key in record.model_fields)
    yield from (f"{key} comes from {count} places" for key, count in made.items() if count > 1)


def _consumers(given: type[Record], actions: Sequence[Action[C, Any, Any]]) -> Iterator[str]:
    """A key that comes from nowhere, or as something else than is wanted."""
    made = {
        key: field.annotation for record in (given, *(action.gives for action in actions)) for key, field in record.model_fields.items()
    }
    names = {action.name for action in actions}
    for action in actions:
        yield from (f"{action.name} comes after {name}, which there is not" for name in action.after if name not in names)
        for key, field in action.takes.model_fields.items():
            if key in made and not _kinds(made[key]) <= _kinds(field.annotation):
                yield f"{action.name} takes {key} as {_type(field.annotation)}, and it comes as {_type(made[key])}"
            elif key not in made and field.is_required():
                yield f"{action.name} takes {key}, which nobody gives"


def _ordered(actions: Sequence[Action[C, Any, Any]]) -> Iterator[Action[C, Any, Any]]:
    """Each as soon as what it needs is there; of several the one that is declared first. Those of a cycle never come."""
    producer = _producer(actions)
    needs = {a.name: {*a.after, *(producer[key] for key in a.takes.model_fields if key in producer)} for a in actions}
    left, done = list(actions), set[str]()
    while ready := next((action for action in left if needs[action.name] <= done), None):
        left.remove(ready)
        done.add(ready.name)
        yield ready


def _producer(actions: Sequence[Action[C, Any, Any]]) -> dict[str, str]:
    return {key: action.name for action in actions for key in action.gives.model_fields}


_UNIONS: Final = (Union, types.UnionType)


def _kinds(annotation: Any) -> frozenset[Any]:
    """The alternatives of a type, so that ``str`` fits where ``str | None`` is taken."""
    return frozenset(get_args(annotation)) if get_origin(annotation) in _UNIONS else frozenset({annotation})


def _keys(record: type[Record]) -> dict[str, str]:
    """Each key with its type; ``?``: it may be missing."""
    return {name: _type(field.annotation) + ("" if field.is_required() else "?") for name, field in sorted(record.model_fields.items())}


def _type(annotation: Any) -> str:
    """As it is written; a record is its name, since what is inside has defaults of its own for what older ones lack."""
    if get_origin(annotation) in _UNIONS:
        return " | ".join(_type(kind) for kind in get_args(annotation))
    if arguments := get_args(annotation):
        return f"{_type(get_origin(annotation))}[{', '.join(_type(kind) for kind in arguments)}]"
    if annotation in {types.NoneType, Ellipsis}:
        return "None" if annotation is types.NoneType else "..."
    return str(getattr(annotation, "__name__", annotation))
