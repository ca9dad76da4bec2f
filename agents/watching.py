"""Exit monitors: one task per running sandbox, which tells when its main process has ended (reference/miren-sandbox.md §3.4)."""

from __future__ import annotations

import asyncio
from typing import Any, Final, Literal

import structlog

from agents.drivers.driver import Condition, Driver, Exit, Handle, RuntimeFault
from agents.node import LocalNode
from agents.records import SandboxRecord
from domain.nodes.orders import Observation, SandboxExited

log = structlog.get_logger(__name__)

AGAIN_S: Final = 1.0
Reason = Literal["exited", "oom", "lost", "killed"]
_REASONS: Final[dict[str, Reason]] = {"oom": "oom", "killed": "killed", "lost": "lost"}


def watch(node: LocalNode, record: SandboxRecord) -> None:
    """Begin to watch it, instead of an earlier generation."""
    unwatch(node, record.id)
    driver, handle = node.drivers.pick(record.driver), node.handle(record)
    task = asyncio.create_task(_watch(node, record.id, driver, handle), name=f"watch {record.id}")
    node.watches[record.id] = task
    task.add_done_callback(lambda done: node.watches.pop(record.id) if node.watches.get(record.id) is done else None)


def ensure_watched(node: LocalNode, sandbox_id: str) -> None:
    """Watch it, if it is there, lives, and is not watched yet."""
    record = node.find(sandbox_id)
    if record is not None and record.condition in {"running", "paused"} and not record.throwaway and sandbox_id not in node.watches:
        watch(node, record)


def unwatch(node: LocalNode, sandbox_id: str) -> None:
    """Its end, from now on, is somebody else's doing."""
    task: asyncio.Task[Any] | None = node.watches.pop(sandbox_id, None)
    if task is not None:
        task.cancel()


async def _watch(node: LocalNode, sandbox_id: str, driver: Driver, handle: Handle) -> None:
    exit_ = await _exit_of(driver, handle)
    record = node.find(sandbox_id)
    if record is not None and record.generation == handle.generation:
        exited(node, record, exit_)


async def _exit_of(driver: Driver, handle: Handle) -> Exit:
    """An error while waiting is not an exit: look again, and wait again."""
    while True:
        try:
            return await driver.wait(handle)
        except RuntimeFault as fault:
            log.warning("watch.again", sandbox=handle.sandbox_id, code=fault.code, error=str(fault))
        await asyncio.sleep(AGAIN_S)
        try:
            seen = await driver.inspect(handle)
        except RuntimeFault:
            continue
        if seen.condition is Condition.EXITED and seen.exit is not None:
            return seen.exit
        if seen.condition is Condition.GONE:
            return Exit(None, "lost")


def exited(node: LocalNode, record: SandboxRecord, exit_: Exit) -> None:
    """Tell, then note: after a crash in between the same is told again under the same name."""
    if record.condition == "exited":
        return
    reason = _REASONS.get(exit_.reason, "exited")
    body = SandboxExited(sandbox_id=record.id, generation=record.generation, exit_code=exit_.code, reason=reason)
    if not record.throwaway:
        name = f"{record.id}:{record.generation}"
        node.reporter.observe(Observation.SANDBOX_EXITED, body.model_dump(mode="json"), name, project=record.project, sandbox=record.id)
        node.runtime_line(record.id, f"main process ended: {reason}, code {exit_.code}")
    node.put(record.model_copy(update={"condition": "exited", "exit_code": exit_.code, "exited_at": node.clock()}))
