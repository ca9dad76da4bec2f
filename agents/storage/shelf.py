"""A directory of things with ids, each with a manifest; they appear and disappear as a whole, also when the agent dies midway."""

from __future__ import annotations

import asyncio
import json
import os
import re
import secrets
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Final

from agents.drivers.driver import RuntimeFault
from agents.storage import trees

Manifest = Mapping[str, Any]

_ID: Final = re.compile(r"[a-z0-9][a-z0-9-]{0,62}")
_MANIFEST: Final = "manifest.json"


class Shelf:
    """``kind`` names the things in refusals. What a crash left half made or half removed is swept away at the start.

    ``lasting``: they survive the machine, so that adding one waits for the disk. What does not is swept away if power was lost meanwhile.
    """

    def __init__(self, directory: Path, kind: str, *, lasting: bool = True) -> None:
        self.directory = directory
        self.kind = kind
        self._lasting = lasting
        directory.mkdir(parents=True, exist_ok=True, mode=0o700)

    def of(self, name: str) -> Path:
        if not _ID.fullmatch(name):
            raise RuntimeFault(f"{self.kind}.invalid-id", f"{name!r} is no id")
        return self.directory / name

    def ids(self) -> frozenset[str]:
        return frozenset(path.name for path in self.directory.iterdir() if _ID.fullmatch(path.name))

    def read(self, name: str) -> dict[str, Any] | None:
        try:
            value: dict[str, Any] = json.loads((self.of(name) / _MANIFEST).read_text(encoding="utf-8"))
        except FileNotFoundError:
            return None
        return value

    def need(self, name: str) -> dict[str, Any]:
        found = self.read(name)
        if found is None:
            raise RuntimeFault(f"{self.kind}.not-found", f"no {self.kind} {name} here")
        return found

    def all(self) -> dict[str, dict[str, Any]]:
        return {name: found for name in self.ids() if (found := self.read(name)) is not None}

    def write(self, name: str, manifest: Manifest) -> None:
        """Replace the manifest: the moment at which a change has happened."""
        _write(self.of(name), manifest)

    async def add(self, name: str, manifest: Callable[[], Manifest], make: Callable[[Path], Any]) -> None:
        """``make`` fills a directory (it may return an awaitable); the thing is there once all of it is."""
        draft = self.directory / f".new-{name}-{secrets.token_hex(4)}"
        draft.mkdir(mode=0o700)
        try:
            made = make(draft)
            if asyncio.iscoroutine(made):
                await made
            _fill(draft / _MANIFEST, manifest(), self._lasting)
            draft.rename(self.of(name))
        except BaseException:
            await asyncio.shield(asyncio.to_thread(trees.remove, draft))
            raise

    def give(self, name: str, other: str) -> None:
        """From now on it is found under another id, which is free."""
        self.of(name).rename(self.of(other))

    async def discard(self, name: str) -> None:
        """Gone at once, its bytes soon. What is not there is fine."""
        trash = self.directory / f".old-{name}-{secrets.token_hex(4)}"
        try:
            self.of(name).rename(trash)
        except FileNotFoundError:
            return
        await asyncio.to_thread(trees.remove, trash)

    def sweep(self) -> None:
        for path in self.directory.iterdir():
            if path.name.startswith((".new-", ".old-")) or (not self._lasting and not _whole(path)):
                trees.remove(path)


def _whole(directory: Path) -> bool:
    """Its manifest is as it was written; none at all, or an empty one, is what a power cut leaves."""
    try:
        json.loads((directory / _MANIFEST).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return False
    return True


def _write(directory: Path, manifest: Manifest) -> None:
    draft = directory / f".{_MANIFEST}"
    _fill(draft, manifest, sync=True)
    draft.replace(directory / _MANIFEST)


def _fill(path: Path, manifest: Manifest, sync: bool) -> None:
    with path.open("w", encoding="utf-8") as file:
        file.write(json.dumps(manifest))
        file.flush()
        if sync:
            os.fsync(file.fileno())
