"""What the simulator remembers: one file of JSON lines, appended to at each change and rewritten when most of it is history.

It lives as long as real processes would: longer than the agent, not longer than the machine needs; so it is not fsynced.
"""

from __future__ import annotations

import json
import os
from dataclasses import asdict, dataclass, replace
from io import BufferedWriter
from pathlib import Path
from typing import Any, Final

from agents.drivers.driver import Exit

_SLACK: Final = 1024


@dataclass(frozen=True, slots=True)
class SimSandbox:
    """One simulated sandbox. ``ends_at``: when its main process ends by itself (clock seconds), ``paused_at``: when time stopped in it."""

    sandbox_id: str
    generation: int
    root: str
    logs: str
    cwd: str
    user: str
    env: dict[str, str]
    started_at: float
    limits: tuple[float, int, int]
    ends_at: float | None = None
    code: int = 0
    paused_at: float | None = None
    exit: Exit | None = None
    ports: tuple[int, ...] = ()


class SimState:
    """``sandboxes`` is the truth; ``put`` and ``drop`` change it in memory and on disk."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self.sandboxes: dict[str, SimSandbox] = {}
        self._lines = 0
        path.parent.mkdir(parents=True, exist_ok=True)
        self._load()
        self._file: BufferedWriter = path.open("ab")

    def put(self, sandbox: SimSandbox) -> SimSandbox:
        self.sandboxes[sandbox.sandbox_id] = sandbox
        self._append(_encode(sandbox))
        return sandbox

    def change(self, sandbox: SimSandbox, **fields: Any) -> SimSandbox:
        return self.put(replace(sandbox, **fields))

    def drop(self, sandbox_id: str) -> None:
        if self.sandboxes.pop(sandbox_id, None) is not None:
            self._append({"sandbox_id": sandbox_id, "dropped": True})

    def close(self) -> None:
        self._file.close()

    def _load(self) -> None:
        if not self._path.exists():
            return
        data = self._path.read_bytes()
        whole = data[: data.rfind(b"\n") + 1]  # beyond: the last line of an agent that was killed while it wrote
        if len(whole) < len(data):
            os.truncate(self._path, len(whole))
        for line in whole.splitlines():
            value = json.loads(line)
            self._lines += 1
            if value.get("dropped"):
                self.sandboxes.pop(value["sandbox_id"], None)
            else:
                self.sandboxes[value["sandbox_id"]] = _decode(value)

    def _append(self, value: dict[str, Any]) -> None:
        self._lines += 1
        if self._lines > 4 * len(self.sandboxes) + _SLACK:
            self._rewrite()
            return
        self._file.write(json.dumps(value, separators=(",", ":")).encode() + b"\n")
        self._file.flush()

    def _rewrite(self) -> None:
        draft = self._path.with_suffix(".new")
        with draft.open("wb") as file:
            for sandbox in self.sandboxes.values():
                file.write(json.dumps(_encode(sandbox), separators=(",", ":")).encode() + b"\n")
        self._file.close()
        draft.replace(self._path)
        self._file = self._path.open("ab")
        self._lines = len(self.sandboxes)


def _encode(sandbox: SimSandbox) -> dict[str, Any]:
    return {name: value for name, value in asdict(sandbox).items() if value not in (None, (), {})}


def _decode(value: dict[str, Any]) -> SimSandbox:
    return SimSandbox(
        **{
            **value,
            "env": value.get("env", {}),
            "limits": tuple(value["limits"]),
            "ports": tuple(value.get("ports", ())),
            "exit": Exit(**value["exit"]) if "exit" in value else None,
        }
    )
