"""``sandbox-pause``, ``sandbox-resume``, ``sandbox-stop``: each brings a state about; asking for what already is changes nothing."""

from __future__ import annotations

from agents.failures import fail
from agents.node import LocalNode
from agents.records import SandboxRecord
from agents.task import Task, can_pause
from agents.verbs.provision import running
from domain.nodes.orders import SandboxRunning, SandboxStopped, SandboxTarget


def current(node: LocalNode, sandbox_id: str, generation: int) -> SandboxRecord:
    """The sandbox, if the order means the machine that is there now.

    Raises ``sandbox.not-found``, ``sandbox.stale-generation``, ``sandbox.not-running``.
    """
    record = node.get(sandbox_id)
    if generation < record.generation:
        raise fail("sandbox.stale-generation", f"sandbox {record.id} is at generation {record.generation}", generation=record.generation)
    if record.condition not in {"running", "paused"}:
        raise fail("sandbox.not-running", f"sandbox {record.id} is {record.condition}", condition=record.condition)
    return record


async def pause(task: Task, body: SandboxTarget) -> None:
    """Freeze it."""
    node = task.node
    record = current(node, body.sandbox_id, body.generation)
    if record.condition == "paused":
        return
    driver = can_pause(node.drivers.pick(record.driver))
    await task.guarded(record.id, driver.pause(node.handle(record)))
    _note(node, record.id, "paused")


async def resume(task: Task, body: SandboxTarget) -> SandboxRunning:
    """Let it run on."""
    node = task.node
    record = current(node, body.sandbox_id, body.generation)
    if record.condition == "running":
        return running(record)
    driver = can_pause(node.drivers.pick(record.driver))
    await task.guarded(record.id, driver.resume(node.handle(record)))
    _note(node, record.id, "running")
    return running(record)


def _note(node: LocalNode, sandbox_id: str, condition: str) -> None:
    """Unless it ended meanwhile."""
    record = node.find(sandbox_id)
    if record is not None and record.condition in {"running", "paused"}:
        node.put(record.model_copy(update={"condition": condition}))
        node.runtime_line(sandbox_id, condition)


async def stop(task: Task, body: SandboxTarget) -> SandboxStopped:
    """End the main process and keep everything else. The monitor tells of the exit as of any other."""
    node = task.node
    record = node.get(body.sandbox_id)
    if record.condition == "exited" or record.handle is None:
        return SandboxStopped(exit_code=record.exit_code, exited_at=record.exited_at)
    spent = (node.clock() - task.trail.accepted).total_seconds()
    driver = node.drivers.pick(record.driver)
    with node.fenced(record.id) as fence:
        exit_ = await fence.guard(driver.stop(node.handle(record), max(0.0, body.grace_s - spent)))
    return SandboxStopped(exit_code=exit_.code, exited_at=node.clock())
