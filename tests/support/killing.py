"""A killer: SIGKILL to one part of an installation at moments that only a seed knows, counted in commits and not in seconds."""

from __future__ import annotations

import asyncio
import json
import os
import random
import signal
from pathlib import Path
from typing import Any, Self

from support.waiting import eventually

from bus.connection import connect_from

BACK_S = 40.0


def pid_of(directory: Path, part: str) -> int | None:
    """The process of a part; None while it does not run."""
    try:
        pids = json.loads((directory / "connect.json").read_text())["pids"]
    except (OSError, ValueError):
        return None
    pid = pids["nodes"].get(part) if part.startswith("node-") else pids.get(part)
    return pid if pid is not None and Path(f"/proc/{pid}").exists() else None


async def kill(directory: Path, part: str, number: int = signal.SIGKILL) -> int:
    """Kill it, and return the pid that is gone when another process has taken its place."""
    old = await eventually(lambda: pid_of(directory, part), within=BACK_S)
    os.kill(old, number)
    await eventually(lambda: pid_of(directory, part) not in {None, old}, within=BACK_S)
    return old


class Killer:
    """Kills one of ``parts`` after every 1 to ``most`` commits, as long as the block runs. ``kills`` says how often and whom."""

    def __init__(self, directory: Path, parts: list[str], seed: int, most: int = 30) -> None:
        self._directory = directory
        self._parts = parts
        self._random = random.Random(seed)
        self._most = most
        self._commits = 0
        self._task: asyncio.Task[None] | None = None
        self._nc: Any = None
        self.kills: list[str] = []

    async def __aenter__(self) -> Self:
        self._nc = await connect_from(self._directory, "killer", on_closed=lambda: None)
        await self._nc.subscribe("strand.evt.>", cb=self._count)
        await self._nc.flush()
        self._task = asyncio.create_task(self._run())
        return self

    async def _count(self, _: Any) -> None:
        self._commits += 1

    async def _run(self) -> None:
        while True:
            await self._more(self._random.randint(1, self._most))
            part = self._random.choice(self._parts)
            self.kills.append(part)
            await kill(self._directory, part)

    async def _more(self, commits: int) -> None:
        wanted = self._commits + commits
        await eventually(lambda: self._commits >= wanted, within=120)

    async def __aexit__(self, *exc: object) -> None:
        assert self._task is not None
        failed = self._task.done() and not self._task.cancelled() and self._task.exception()
        self._task.cancel()
        await asyncio.gather(self._task, return_exceptions=True)
        await self._nc.close()
        if failed and exc[0] is None:
            raise failed
