"""A view's own items while it applies events: what the batch changed, over what the store has.

Only what a batch touches is in memory, and some of what earlier batches touched (``keep``), so that a view of a hundred thousand items
does not live in memory.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from itertools import islice
from typing import Any, Final

from projections.store import ITEMS, Item, Key, Reader

KEEP: Final = 4096
"""Items per view that are remembered after they were saved; about 1-2 KiB each."""
EVERYTHING: Final = 1 << 31


class StoreFault(Exception):  # noqa: N818 - it names what happened
    """The store could not be read. Not the view's fault: the batch is applied again later."""


class State:
    """What apply functions have in their hands. Items under (project, id); ``kind`` for a view's notes that queries do not return.

    ``before_search`` is called once, before the first ``find``.
    """

    def __init__(self, reader: Reader, before_search: Callable[[], None] = lambda: None, keep: int = KEEP) -> None:
        self._reader = reader
        self._before_search = before_search
        self._keep = keep
        self._known: dict[Key, Item | None] = {}
        self.dirty: dict[Key, Item | None] = {}

    def get(self, project: str, id: str, kind: str = ITEMS) -> Item | None:  # noqa: A002
        """The item, to look at."""
        key = (kind, project, id)
        try:
            return self._known[key]
        except KeyError:
            with _reading():
                item = self._known[key] = self._reader.get(*key)
            return item

    def edit(self, project: str, id: str, kind: str = ITEMS) -> Item | None:  # noqa: A002
        """The item, to change: it is saved with the batch."""
        key = (kind, project, id)
        try:
            item = self._known[key]
        except KeyError:
            item = self.get(project, id, kind)
        if item is not None:
            self.dirty[key] = item
        return item

    def put(self, project: str, id: str, item: Item, kind: str = ITEMS) -> Item:  # noqa: A002
        """A new item, or another in its place."""
        key = (kind, project, id)
        self._known[key] = self.dirty[key] = item
        return item

    def delete(self, project: str, id: str, kind: str = ITEMS) -> None:  # noqa: A002
        key = (kind, project, id)
        self._known[key] = self.dirty[key] = None

    def find(self, where: Mapping[str, Any], kind: str = ITEMS, project: str | None = None) -> list[tuple[str, str]]:
        """(project, id) of all items whose fields have these values, ascending. The view declares the fields as ``lookups``."""
        with _reading():
            self._before_search()
            self._before_search = _nothing
            rows = self._reader.scan(kind, project, where, "", EVERYTHING)
        stored = set()
        for row_project, id_, item in rows:
            stored.add((row_project, id_))
            self._known.setdefault((kind, row_project, id_), item)
        for (row_kind, row_project, id_), changed in self.dirty.items():
            if row_kind != kind or (project is not None and row_project != project):
                continue
            if changed is not None and all(changed.get(name) == value for name, value in where.items()):
                stored.add((row_project, id_))
            else:
                stored.discard((row_project, id_))
        return sorted(stored)

    def fetch(self, keys: Iterable[Key]) -> None:
        """Read many items at once, so that they are at hand."""
        unknown = [key for key in keys if key not in self._known]
        if unknown:
            with _reading():
                found = self._reader.get_many(unknown)
            self._known.update((key, found.get(key)) for key in unknown)

    def saved(self) -> None:
        """The batch is in the store: forget what it changed, and what was remembered for too long."""
        self.dirty.clear()
        excess = len(self._known) - self._keep
        if excess > 0:
            for key in list(islice(self._known, excess)):
                del self._known[key]

    def forget(self) -> None:
        """Nothing of this batch happened."""
        self.dirty.clear()
        self._known.clear()


def _nothing() -> None:
    """There is an index already."""


@contextmanager
def _reading() -> Iterator[None]:
    try:
        yield
    except Exception as error:
        raise StoreFault(f"reading failed: {error}") from error
