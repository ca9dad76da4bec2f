"""What a driver writes down of its sandboxes: one directory each, readable by the agent's user alone.

``spec.json`` is there before anything is started, so that whatever a crash leaves behind can be found; every file is replaced as a whole.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import re
import shutil
from dataclasses import asdict
from pathlib import Path
from typing import Any, Final

from agents.drivers.driver import Exit, Handle, Limits, Mount, RuntimeFault, Spec

_ID: Final = re.compile(r"[a-z0-9][a-z0-9-]{0,62}")


class StateDir:
    """The directories of one driver. ``mark`` is a short name for it that no other agent's driver on this host has."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory.absolute()
        self.directory.mkdir(parents=True, exist_ok=True, mode=0o700)
        self.mark = hashlib.sha256(str(self.directory.resolve()).encode()).hexdigest()[:8]

    def of(self, sandbox_id: str) -> Path:
        """The directory of one sandbox. An id that is not one plain name is refused."""
        if not _ID.fullmatch(sandbox_id):
            raise RuntimeFault("sandbox.invalid-id", f"{sandbox_id!r} is no sandbox id")
        return self.directory / sandbox_id

    def ids(self) -> list[str]:
        return sorted(path.name for path in self.directory.iterdir() if _ID.fullmatch(path.name) and path.is_dir())

    def create(self, spec: Spec) -> Path:
        """Begin a generation: a fresh directory that holds the specification."""
        path = self.of(spec.sandbox_id)
        path.mkdir(mode=0o700, exist_ok=True)
        self.write(spec.sandbox_id, "spec", spec_to_json(spec))
        return path

    def give(self, held: str, spec: Spec) -> None:
        """What is held under one name becomes a sandbox: from now on everything of it is found under that name."""
        self.write(held, "spec", spec_to_json(spec))
        self.of(held).rename(self.of(spec.sandbox_id))

    def write(self, sandbox_id: str, name: str, value: dict[str, Any]) -> None:
        path = self.of(sandbox_id) / f"{name}.json"
        draft = path.with_suffix(".new")
        with os.fdopen(os.open(draft, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, 0o600), "w", encoding="utf-8") as file:
            file.write(json.dumps(value))  # in one piece: ``json.dump`` takes ten times as long
        draft.replace(path)

    def read(self, sandbox_id: str, name: str) -> dict[str, Any] | None:
        """None when it was never written, or when power was lost before it was on the disk, and what it spoke of is gone as well."""
        with contextlib.suppress(FileNotFoundError, ValueError):
            value: dict[str, Any] = json.loads((self.of(sandbox_id) / f"{name}.json").read_text(encoding="utf-8"))
            return value
        return None

    def spec(self, sandbox_id: str) -> Spec | None:
        value = self.read(sandbox_id, "spec")
        return None if value is None else spec_from_json(value)

    def adopt(self, spec: Spec) -> Handle | None:
        """What of this very generation was started already. Raises ``sandbox.stale-generation``: a later one was."""
        before = self.spec(spec.sandbox_id)
        if before is not None and before.generation > spec.generation:
            raise RuntimeFault("sandbox.stale-generation", f"generation {before.generation} of {spec.sandbox_id} was started already")
        return self.handle(spec.sandbox_id) if before is not None and before.generation == spec.generation else None

    def handle(self, sandbox_id: str) -> Handle | None:
        value = self.read(sandbox_id, "handle")
        return None if value is None else Handle(**value)

    def write_handle(self, handle: Handle) -> None:
        self.write(handle.sandbox_id, "handle", asdict(handle))

    def exit(self, sandbox_id: str) -> Exit | None:
        value = self.read(sandbox_id, "exit")
        return None if value is None else Exit(**value)

    def write_exit(self, sandbox_id: str, ended: Exit) -> Exit:
        """The first word on how it ended stays."""
        known = self.exit(sandbox_id)
        if known is None:
            self.write(sandbox_id, "exit", asdict(ended))
        return known or ended

    def set_mark(self, sandbox_id: str, name: str, on: bool) -> None:
        path = self.of(sandbox_id) / name
        if on:
            path.touch(mode=0o600)
        else:
            path.unlink(missing_ok=True)

    def has_mark(self, sandbox_id: str, name: str) -> bool:
        return (self.of(sandbox_id) / name).exists()

    def remove(self, sandbox_id: str) -> None:
        shutil.rmtree(self.of(sandbox_id), ignore_errors=True)


def spec_to_json(spec: Spec) -> dict[str, Any]:
    value = asdict(spec)
    return {
        **value,
        "root": str(spec.root),
        "logs": str(spec.logs),
        "netns": str(spec.netns) if spec.netns else None,
        "memory": str(spec.memory) if spec.memory else None,
        "env": dict(spec.env),
        "mounts": [{**asdict(mount), "source": str(mount.source)} for mount in spec.mounts],
    }


def spec_from_json(value: dict[str, Any]) -> Spec:
    netns, memory = (Path(value[name]) if value.get(name) else None for name in ("netns", "memory"))
    paths = {"root": Path(value["root"]), "logs": Path(value["logs"]), "netns": netns, "memory": memory}
    mounts = tuple(Mount(**{**mount, "source": Path(mount["source"])}) for mount in value.get("mounts", ()))
    return Spec(**{**value, **paths, "mounts": mounts, "limits": Limits(**value["limits"])})
