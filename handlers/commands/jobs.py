"""What commands that start something have in common: a repetition starts nothing, and whoever waits is told how it ended."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import Any

from bus.endpoints import Reply
from domain.kernel.aggregate import Aggregate
from domain.templates.job import Job
from handlers.control import Control, Parts, unchanged
from handlers.dispatch import Asked


async def once(control: Control, asked: Asked, cls: type[Aggregate], identifier: str, plan: Callable[[], Awaitable[Parts]]) -> None:
    """Carry out what ``plan`` says, unless this command has made ``identifier``, whose id follows from the command's, before.

    A repetition is not planned again: what is true by now would perhaps refuse it. Raises what ``plan`` raises, and ``command.mismatch``.
    """
    if await control.find(cls, asked.project, identifier) is None:
        await control.store.transact_many(await plan(), asked.cause)
    else:
        await control.change(cls, asked.project, identifier, asked.cause, unchanged)


async def job_reply(control: Control, asked: Asked, job_id: str, result: dict[str, Any], identifier: str, wait_s: float) -> Reply:
    """The reply of a command that started a job; waits until the job has ended if the caller wants that. Raises why it failed."""

    async def ended() -> bool:
        return not (await control.get(Job, asked.project, job_id)).active

    settled = await asked.wait(control, "job", job_id, ended, wait_s)
    job = await control.get(Job, asked.project, job_id)
    if wait_s:
        job.raise_failure(result)
    seq = await control.position(Job, asked.project, job_id)
    return Reply({**result, "settled": settled, "status": job.state.value}, identifier, seq)
