"""``sandbox-limits``: other bounds while it runs. The record keeps them, so that a rollback starts with them too."""

from __future__ import annotations

from agents.drivers.driver import CanLimitLive, Driver, Limits
from agents.failures import fail
from agents.task import Task
from agents.verbs.power import current
from domain.nodes.orders import SandboxLimits


async def change(task: Task, body: SandboxLimits) -> None:
    """Have the driver keep it to them. Raises ``limits.refused``, ``limits.in-use``, ``driver.unsupported``."""
    node = task.node
    record = current(node, body.sandbox_id, body.generation)
    driver = _can_limit(node.drivers.pick(record.driver))
    await task.guarded(record.id, driver.set_limits(node.handle(record), Limits(body.cpu, body.memory_mb, body.pids)))
    known = node.find(body.sandbox_id)
    if known is not None:
        recipe = known.spec.recipe.model_copy(update={"cpu": body.cpu, "memory_mb": body.memory_mb, "pids": body.pids})
        node.put(known.model_copy(update={"spec": known.spec.model_copy(update={"recipe": recipe})}))
        node.runtime_line(body.sandbox_id, f"limits: {body.cpu:g} cores, {body.memory_mb} MiB, {body.pids} processes")


def _can_limit(driver: Driver) -> CanLimitLive:
    if isinstance(driver, CanLimitLive) and "live-limits" in driver.flags:
        return driver
    raise fail("driver.unsupported", f"driver {driver.name} cannot change limits of what runs", driver=driver.name, needs="live-limits")
