"""Progress of a job on stderr: a bar per phase for people, a line per change for logs, nothing on stdout."""

from __future__ import annotations

import asyncio
import contextlib
import sys
from typing import Any, Self

from rich.progress import BarColumn, Progress, TaskID, TextColumn, TimeElapsedColumn

from domain.kernel.errors import Refused
from strandline.cli.columns import size
from strandline.cli.style import err, interactive, screen
from strandline.cli.verb import Run
from strandline.client.call import timed_out
from strandline.client.items import Job, Pull
from strandline.client.jobs import failure


async def follow_job(run: Run, job_id: str) -> Job:
    """Show the job until it has ended. Raises what it failed with, or ``wait.timeout``."""
    job: Job | None = None
    show = _Bars() if interactive(sys.stderr) else _Lines()
    try:
        with show:
            async with asyncio.timeout(run.timeout_s), contextlib.aclosing(run.s.jobs.watch(job_id)) as states:
                async for job in states:
                    show.update(job)
    except TimeoutError:
        raise timed_out(f"job {job_id}", run.timeout_s, job_id=job_id, phase=job and job.phase) from None
    if job is None:
        raise Refused("job.not-found", f"no job {job_id!r}")
    refused = failure(job)
    if refused is not None:
        raise refused
    return job


def pull_text(pull: Pull | None) -> str:
    """``12.0 MiB of 48.0 MiB, 2 of 5 layers, 9.1 MiB/s``."""
    if pull is None:
        return ""
    parts = [size(pull.bytes) + (f" of {size(pull.total_bytes)}" if pull.total_bytes else "")]
    if pull.total_layers:
        parts.append(f"{pull.layers} of {pull.total_layers} layers")
    if pull.bytes_per_s:
        parts.append(f"{size(pull.bytes_per_s)}/s")
    return ", ".join(parts)


class _Lines:
    """One line for every phase and every tenth of the way."""

    def __init__(self) -> None:
        self._said: tuple[Any, ...] = ()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exc: object) -> None:
        return None

    def update(self, job: Job) -> None:
        said = (job.status, job.phase, int(job.progress) // 10)
        if said != self._said:
            detail = pull_text(job.pull) if job.phase == "PULLING" else ""
            err(f"{job.phase or job.status} {job.progress:.0f}%{' ' + detail if detail else ''}")
        self._said = said


class _Bars:
    """A finished line per phase behind us, a moving bar for the one at work."""

    def __init__(self) -> None:
        self._progress = Progress(
            TextColumn("[bold]{task.description}[/]"),
            BarColumn(bar_width=30),
            TextColumn("{task.percentage:>3.0f}%"),
            TimeElapsedColumn(),
            TextColumn("{task.fields[detail]}", style="bright_black"),
            console=screen(sys.stderr),
        )
        self._task: TaskID | None = None
        self._phase: str | None = None
        self._base = 0.0

    def __enter__(self) -> Self:
        self._progress.start()
        return self

    def __exit__(self, *exc: object) -> None:
        self._progress.stop()

    def update(self, job: Job) -> None:
        phase = job.phase or job.status
        if phase != self._phase:
            self._finish()
            self._phase, self._base = phase, job.progress
            self._task = self._progress.add_task(f"{phase:<18}", total=100, detail="")
        if self._task is not None:
            self._progress.update(self._task, completed=job.progress, detail=pull_text(job.pull) if phase == "PULLING" else "")
        if job.status == "READY":
            self._finish()

    def _finish(self) -> None:
        if self._task is not None:
            self._progress.update(self._task, completed=100, detail="")
            self._progress.stop_task(self._task)
