"""Jobs: how far a long operation has come, and waiting for its end."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncGenerator, AsyncIterator
from typing import Any, Unpack

from domain.kernel.errors import Refused
from domain.templates.commands import JobCancel
from strandline.client.call import Call, timed_out
from strandline.client.changes import changes
from strandline.client.items import Job
from strandline.client.noun import Noun
from strandline.client.replies import JobCancelled


class Jobs(Noun):
    """The view ``jobs``."""

    async def get(self, job_id: str, *, as_of: int | str | None = None) -> Job:
        """One job. Raises ``job.not-found``."""
        return await self._calls.one("jobs", Job, "job", job_id, as_of)

    def list(self, *, as_of: int | str | None = None, limit: int | None = None, **filters: Any) -> AsyncIterator[Job]:
        """Jobs whose fields equal the filters."""
        return self._calls.each("jobs", Job, {**filters, "as_of": as_of}, limit=limit)

    async def cancel(self, job_id: str, **call: Unpack[Call]) -> JobCancelled:
        """End a job that makes a template ready; what it had begun is cleaned up. Raises ``job.not-cancellable``, ``job.illegal-state``."""
        return await self._calls.command(JobCancel, JobCancelled, call, job_id=job_id)

    async def watch(self, job_id: str) -> AsyncGenerator[Job, None]:
        """The job now and after every change, until it has ended."""
        last: Job | None = None
        async with contextlib.aclosing(changes(self._calls, "job", id=job_id)) as moves:
            async for _ in moves:
                job = await self.get(job_id)
                if job != last:
                    yield job
                if job.ended:
                    return
                last = job

    async def wait(self, job_id: str, timeout: float = 600) -> Job:
        """The job once it has ended, READY or FAILED (see :func:`failure`). Raises ``wait.timeout``."""
        job: Job | None = None
        try:
            async with asyncio.timeout(timeout), contextlib.aclosing(self.watch(job_id)) as states:
                async for state in states:
                    job = state
        except TimeoutError:
            raise timed_out(f"job {job_id}", timeout, job_id=job_id, phase=job and job.phase) from None
        if job is None:
            raise Refused("job.not-found", f"no job {job_id!r}")
        return job


def failure(job: Job) -> Refused | None:
    """Why a FAILED job failed, as the refusal that a waiting command would have raised; None for any other job."""
    if job.status != "FAILED":
        return None
    details = {"job_id": job.job_id, "phase": job.phase}
    error = job.error if isinstance(job.error, dict) else {"message": job.error}
    return Refused(
        str(error.get("code") or "job.failed"),
        str(error.get("message") or f"job {job.job_id} failed in {job.phase}"),
        retryable=error.get("retryable") is True,
        details={**details, **(error.get("details") or {})},
    )
