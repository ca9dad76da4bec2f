"""The engine: brings generations forward by batches of the log, each batch one transaction.

Everything is decoded once and handed to every view that reads it. Items that several commits of a batch change are written once. What a
generation has already seen it skips, so redelivery is a no-op; when a write fails nothing of the batch happened, and the store says where
to go on.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field

import structlog

from domain.kernel.command import canonical
from projections.facts import RawCommit, read_commit, read_fact
from projections.state import State, StoreFault
from projections.store import ITEMS, Changes, Generation, Key, Role, Store
from projections.view import Apply, View

log = structlog.get_logger(__name__)

Message = tuple[int, bytes]
"""(sequence, stored commit)."""


@dataclass
class Target:
    """One generation that is being brought forward. ``seen`` runs ahead of ``position``, what is saved, within a batch.

    ``broken`` says why a view stopped: its code could not apply an event. It stays where it was, consistent; the others go on.
    """

    view: View
    generation: Generation
    state: State
    position: int
    seen: int = field(init=False)
    broken: str | None = None

    def __post_init__(self) -> None:
        self.seen = self.position


class Engine:
    """Applies the log to targets. Blocking; used by one task at a time."""

    def __init__(self, store: Store, views: Iterable[View]) -> None:
        self._store = store
        self._views = {view.name: view for view in views}
        self.targets: dict[tuple[str, int], Target] = {}
        self._routes: dict[str, list[tuple[Target, Apply]]] = {}
        self._endings: tuple[bytes, ...] = ()
        self.cursor = 0
        """The last position that was handed to ``apply``: what a target has to have seen to join."""

    def open(self) -> list[View]:
        """Take up the live generations. Returns the views that must be built first because the store has none, or one of other code.

        In an empty store nothing has to be built: all views begin with the log.
        """
        known = self._store.generations()
        for leftover in [g for g in known if g.role in {Role.BUILDING, Role.RETIRED}]:
            self._store.drop(leftover.view, leftover.number)
        live = {g.view: g for g in known if g.role is Role.LIVE}
        if not any(g.position for g in live.values()):
            self.begin()
            return []
        missing = []
        for view in self._views.values():
            generation = live.get(view.name)
            if generation is not None and generation.schema == view.schema:
                self.attach(generation)
            else:
                missing.append(view)
        self.cursor = self.position
        return missing

    def begin(self) -> None:
        """All views from the beginning of the log, whatever the store holds now."""
        for old in self._store.generations():
            self._store.drop(old.view, old.number)
        self.targets.clear()
        for view in self._views.values():
            made = self._store.create(view.name, view.schema)
            self._store.switch(view.name, made.number)
            self.attach(made)
        self.cursor = 0

    @property
    def position(self) -> int:
        """Where reading goes on: every healthy target has seen the log up to here at least."""
        return min((t.position for t in self.targets.values() if t.broken is None), default=0)

    @property
    def dirty(self) -> int:
        """How many items wait to be saved."""
        return sum(len(t.state.dirty) for t in self.targets.values())

    def attach(self, generation: Generation) -> Target:
        """Bring this generation forward too, from where it is."""
        state = self._state(self._views[generation.view], generation.number)
        return self.adopt(Target(self._views[generation.view], generation, state, generation.position))

    def _state(self, view: View, number: int) -> State:
        """Its first search makes searching fast: most replays need none, and an index that is kept makes saving slow."""
        return State(self._store.current(view.name, number), lambda: self._store.index(view.name, number, view.lookups))

    def adopt(self, target: Target) -> Target:
        """Bring a target forward that another engine brought so far."""
        self.targets[target.view.name, target.generation.number] = target
        self._reroute()
        return target

    def detach(self, view: str, number: int) -> None:
        """Leave it where it is."""
        self.targets.pop((view, number), None)
        self._reroute()

    def _reroute(self) -> None:
        routes: dict[str, list[tuple[Target, Apply]]] = defaultdict(list)
        for target in self.targets.values():
            if target.broken is None:
                for name, apply in target.view.routes.items():
                    routes[name].append((target, apply))
        self._routes = dict(routes)
        self._endings = tuple(sorted({_ending(name.partition(".")[0]) for name in routes}))

    def apply(self, batch: Sequence[Message]) -> None:
        """Apply commits in order, in memory; ``save`` makes it last. After a ``StoreFault``: ``reload``, and read on from ``position``."""
        if not batch:
            return
        commits = [(seq, read_commit(data)) for seq, data in batch if data.endswith(self._endings)]
        if self._store.remote:
            self._fetch([commit for _, commit in commits])
        before = 0
        for seq, commit in commits:
            if seq > before:
                self._apply_commit(seq, commit)
            before = seq
        before, _ = batch[-1]
        for target in self.targets.values():
            if target.broken is None and target.seen < before:
                target.seen = before
        self.cursor = before

    def _apply_commit(self, seq: int, commit: RawCommit) -> None:
        for event in commit.events:
            steps = self._routes.get(event.type)
            if steps is None:
                continue
            fact = None
            for target, apply in steps:
                if seq <= target.seen:
                    continue
                try:
                    fact = fact or read_fact(seq, commit, event)
                    apply(target.state, fact)
                except StoreFault:
                    raise
                except Exception as error:
                    log.exception("view.broken", view=target.view.name, seq=seq)
                    self._break(target, seq, error)

    def _break(self, target: Target, seq: int, error: Exception) -> None:
        target.broken = f"event {seq}: {type(error).__name__}: {error}"[:500]
        target.state.forget()
        self._reroute()

    def _fetch(self, commits: Sequence[RawCommit]) -> None:
        """Read the items that commits are about in one go; a first commit's do not exist yet."""
        keys: dict[int, tuple[Target, dict[Key, None]]] = {}
        for commit in commits:
            if commit.events[0].version == 1:
                continue
            for event in commit.events:
                for target, _ in self._routes.get(event.type, ()):
                    keys.setdefault(id(target), (target, {}))[1][ITEMS, commit.project, commit.id] = None
        for target, wanted in keys.values():
            target.state.fetch(wanted)

    def save(self) -> None:
        """Write what was applied, with positions, in one transaction. Raises what the store raises; then nothing was applied."""
        moved = [t for t in self.targets.values() if t.broken is None and t.seen > t.position]
        if not moved:
            return
        changes = [Changes(t.view.name, t.generation.number, t.position, t.seen, t.state.dirty) for t in moved]
        try:
            self._store.write(changes)
        except BaseException:
            self.reload()
            raise
        for target in moved:
            target.position = target.seen
            target.state.saved()

    def reload(self) -> None:
        """Forget what is not saved and go on from what the store says, also when another process has replaced a generation."""
        for target in self.targets.values():
            target.state.forget()
            target.seen = target.position
        known = {(g.view, g.number): g for g in self._store.generations() if g.role in {Role.LIVE, Role.BUILDING, Role.COPY}}
        live = {g.view: g for g in known.values() if g.role is Role.LIVE}
        for key, target in list(self.targets.items()):
            generation = known.get(key)
            if generation is not None:
                target.position = target.seen = generation.position
                target.state = self._state(target.view, generation.number)
            elif (other := live.get(target.view.name)) is not None and other.schema == target.view.schema:
                self.detach(*key)
                self.attach(other)
        self.cursor = self.position
        self._reroute()


def _ending(kind: str) -> bytes:
    """How commits of this type of aggregate end: they are canonical JSON, whose names are sorted, and ``type`` is the last of them.

    So what no view reads is not even parsed.
    """
    return canonical({"type": kind})[1:]
