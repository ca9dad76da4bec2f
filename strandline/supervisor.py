"""Processes that are kept alive: each is started again when it dies, a little later each time it dies soon."""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

import structlog

log = structlog.get_logger(__name__)

FIRST_DELAY_S: Final = 0.1
LONGEST_DELAY_S: Final = 5.0
TELL_AGAIN_S: Final = 1.0
STEADY_S: Final = 5.0
"""After running that long, a death counts as the first one again."""
GIVES_UP: Final = 78
"""EX_CONFIG: a part ends so when starting it again changes nothing until somebody mends the host (``agents/__main__.py``)."""


@dataclass
class Child:
    """One process. ``argv`` is run with stdout and stderr appended to ``log``; ``stop_s`` is how long SIGTERM is given."""

    name: str
    argv: Sequence[str]
    log: Path
    env: dict[str, str] = field(default_factory=dict)
    stop_s: float = 20.0
    process: asyncio.subprocess.Process | None = None
    starts: int = 0
    said_before: int = 0
    """Bytes of the log that earlier starts wrote."""

    def said(self) -> str:
        """What this start of it wrote for people: its log without the JSON lines; the last line when there are no others."""
        try:
            lines = self.log.read_bytes()[self.said_before :].decode(errors="replace").strip().splitlines()
        except OSError:
            lines = []
        return "\n".join(line for line in lines if not line.startswith("{")) or (lines[-1] if lines else "it said nothing")

    @property
    def pid(self) -> int | None:
        """The process id while it runs."""
        return None if self.process is None or self.process.returncode is not None else self.process.pid


class Supervisor:
    """Starts children and keeps them running until told otherwise. ``changed`` is called when a pid is another one."""

    def __init__(self, changed: Callable[[], None] = lambda: None) -> None:
        self.children: dict[str, Child] = {}
        self._tasks: dict[str, asyncio.Task[None]] = {}
        self._changed = changed
        self._gave_up = asyncio.Event()

    async def gave_up(self) -> Child:
        """Wait, for ever as a rule, for a child that ended with ``GIVES_UP``: it is not started again."""
        await self._gave_up.wait()
        return next(child for child in self.children.values() if _gives_up(child))

    async def start(self, child: Child) -> None:
        """Run a child from now on. Raises ``OSError`` when it cannot be started at all."""
        self.children[child.name] = child
        await self._spawn(child)
        self._tasks[child.name] = asyncio.create_task(self._keep(child), name=f"keep {child.name}")

    async def _spawn(self, child: Child) -> None:
        child.log.parent.mkdir(parents=True, exist_ok=True)
        with child.log.open("ab") as out:
            child.said_before = out.tell()
            # A session of its own: Ctrl-C on the terminal is for the supervisor, which stops its children in order.
            child.process = await asyncio.create_subprocess_exec(
                *child.argv,
                stdin=asyncio.subprocess.DEVNULL,
                stdout=out,
                stderr=out,
                env={**os.environ, **child.env},
                start_new_session=True,
            )
        child.starts += 1
        self._tell()

    async def _keep(self, child: Child) -> None:
        delay = 0.0
        loop = asyncio.get_running_loop()
        while child.process is not None:
            began = loop.time()
            code = await child.process.wait()
            if code == GIVES_UP:
                self._tell()
                self._gave_up.set()
                return
            steady = loop.time() - began > STEADY_S
            delay = FIRST_DELAY_S if steady or not delay else min(delay * 2, LONGEST_DELAY_S)
            log.warning("child.died", name=child.name, code=code, again_in_s=delay)
            self._tell()
            await asyncio.sleep(delay)
            try:
                await self._spawn(child)
            except OSError as error:  # no memory, no processes, no room for a log: there may be some later
                log.warning("child.not-started", name=child.name, error=str(error))

    def _tell(self) -> None:
        """Say that a pid is another one; where the disk is full, as soon as it is not."""
        try:
            self._changed()
        except OSError as error:
            log.warning("supervisor.untold", error=str(error))
            asyncio.get_running_loop().call_later(TELL_AGAIN_S, self._tell)

    async def restart(self, name: str) -> None:
        """SIGTERM, time to drain, SIGKILL; then it is started again as if it had died. Returns when it has ended."""
        await _end(self.children[name])

    async def stop(self, name: str) -> None:
        """SIGTERM, time to drain, SIGKILL. The child is not started again."""
        child = self.children.pop(name, None)
        task = self._tasks.pop(name, None)
        if task is not None:
            task.cancel()
            await asyncio.gather(task, return_exceptions=True)
        if child is not None:
            await _end(child)


def _gives_up(child: Child) -> bool:
    return child.process is not None and child.process.returncode == GIVES_UP


async def _end(child: Child) -> None:
    process = child.process
    if process is None or process.returncode is not None:
        return
    with contextlib.suppress(ProcessLookupError):
        process.send_signal(signal.SIGTERM)
    try:
        async with asyncio.timeout(child.stop_s):
            await process.wait()
    except TimeoutError:
        log.warning("child.killed", name=child.name, after_s=child.stop_s)
        with contextlib.suppress(ProcessLookupError):
            process.kill()
        await process.wait()
