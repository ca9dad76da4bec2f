"""Pools have the members that they want: level-triggered, by whatever happens to a member, by a timer, and by settings.

What a pool wants follows from itself (domain/sandboxes/pool.py); here its members are looked at, created, and stopped.
"""

from __future__ import annotations

from collections.abc import Iterable
from datetime import datetime
from functools import partial
from typing import Final

import structlog

from domain.kernel import ids
from domain.kernel.errors import Refused
from domain.nodes.placement import no_ready_replica
from domain.sandboxes.placed import Placed
from domain.sandboxes.pool import Plan, Pool, PoolState
from domain.sandboxes.sandbox import Sandbox, SandboxState
from domain.sandboxes.spec import SandboxSpec
from domain.templates.artifact import Artifact
from domain.templates.template import Template
from domain.templates.template_states import GONE
from handlers.control import Control
from handlers.placing import Wish, for_template, place

log = structlog.get_logger(__name__)

TIMER: Final = "pool"
CRASHES: Final = frozenset({"startup_failed", "exited", "oom", "killed"})
"""Reasons for which a sandbox ends by its own doing."""


async def pump(control: Control, project: str, template_id: str) -> None:
    """Look at every member, then do what is due."""
    pool = await control.find(Pool, project, template_id)
    if pool is None or pool.state is PoolState.GONE:
        return
    await _end_with_template(control, project, pool)
    seen = {name: await control.find(Sandbox, project, name) for name in pool.members}
    pool = await _observe(control, project, pool, seen)
    plan = pool.plan(control.clock(), {name: s.last_activity for name, s in seen.items() if s is not None and s.last_activity is not None})
    await _retire(control, project, pool, plan)
    if pool.state is PoolState.ACTIVE:
        await _create(control, project, pool, plan.create)
    if plan.finish:
        cause = control.own_cause(project, Pool.TOPIC, template_id, "finish", pool.version)
        await control.change(Pool, project, template_id, cause, lambda p: p.finish(cause.at))
    if plan.again_at is not None:
        await control.set_timer(project, Pool.TOPIC, template_id, TIMER, plan.again_at, pool.version)


async def _end_with_template(control: Control, project: str, pool: Pool) -> None:
    template = await control.find(Template, project, pool.id)
    if template is None or template.state in GONE:
        cause = control.own_cause(project, Pool.TOPIC, pool.id, "template-gone")
        await control.change(Pool, project, pool.id, cause, lambda p: p.request_delete(cause.at))


async def _observe(control: Control, project: str, pool: Pool, seen: dict[str, Sandbox | None]) -> Pool:
    """Tell the pool what its members are; one whose sandbox was never created is created now."""
    cause = control.own_cause(project, Pool.TOPIC, pool.id, "observe", pool.version, *_states(seen))

    def tell(p: Pool) -> None:
        for name, sandbox in seen.items():
            if sandbox is not None and sandbox.state is SandboxState.DEAD:
                p.left(cause.at, name, crashed=sandbox.reason in CRASHES)
            elif sandbox is not None and sandbox.state in {SandboxState.RUNNING, SandboxState.PAUSED}:
                p.ready(cause.at, name)
        p.recover(cause.at)

    told = (await control.change(Pool, project, pool.id, cause, tell)).aggregate
    for name in [name for name, sandbox in seen.items() if sandbox is None]:
        await _start(control, project, told, name)
    return told


def _states(seen: dict[str, Sandbox | None]) -> Iterable[str]:
    return [f"{name}={'' if sandbox is None else sandbox.state.value}" for name, sandbox in sorted(seen.items())]


async def _retire(control: Control, project: str, pool: Pool, plan: Plan) -> None:
    """Whom the pool has too many of, and whom nobody used; also those that were told before, and live."""
    for name in (*plan.retire, *plan.idle):
        cause = control.own_cause(project, Pool.TOPIC, pool.id, "retire", name)
        idle = name in plan.idle
        await control.change(Pool, project, pool.id, cause, partial(Pool.retire, at=cause.at, sandbox_id=name, idle=idle))
    leaving = {*plan.retire, *plan.idle, *(name for name, member in pool.members.items() if member.leaving)}
    for name in sorted(leaving):
        if await control.find(Sandbox, project, name) is not None:
            cause = control.own_cause(project, "sandbox", name, "scaled-down")
            await control.change(Sandbox, project, name, cause, partial(_stop, at=cause.at, command=cause.command, warm=pool.settings.warm))


def _stop(sandbox: Sandbox, at: datetime, command: str, *, warm: bool) -> None:
    """Unless somebody has it by now. In one that only waited nothing is worth waiting for."""
    if sandbox.pool is not None and warm:
        sandbox.request_delete(at, command, "scaled_down")
    elif sandbox.pool is not None:
        sandbox.request_stop(at, command, reason="scaled_down")


async def _create(control: Control, project: str, pool: Pool, count: int) -> None:
    """The pool notes a member before its sandbox is created, so that whoever dies in between leaves no sandbox that nobody knows."""
    for serial in range(pool.serial + 1, pool.serial + 1 + count):
        name = ids.sandbox_id(project, ids.derived(project, Pool.TOPIC, pool.id, serial))
        cause = control.own_cause(project, Pool.TOPIC, pool.id, "add", serial)
        done = await control.change(Pool, project, pool.id, cause, partial(Pool.add, at=cause.at, sandbox_id=name, serial=serial))
        if name in done.aggregate.members and not await _start(control, project, done.aggregate, name):
            return


async def _start(control: Control, project: str, pool: Pool, name: str) -> bool:
    """Place and create a member's sandbox. Without room it is tried again when the pool is looked at next."""
    if pool.state is not PoolState.ACTIVE:
        cause = control.own_cause(project, Pool.TOPIC, pool.id, "never-made", name)
        await control.change(Pool, project, pool.id, cause, lambda p: p.left(cause.at, name))
        return False
    try:
        spec, node, placed = await _placed(control, project, pool.id)
    except Refused as refused:
        log.info("pool.not-filled", pool=pool.id, code=refused.code)
        return False
    cause = control.own_cause(project, "sandbox", name, "pool")

    def make(sandbox: Sandbox | None) -> Sandbox:
        return sandbox or Sandbox.create(name, cause.at, spec, node, placed=placed, pool=pool.id)

    control.fleet.promise(name, node, spec.recipe.cpu, spec.recipe.memory_mb)
    await control.store.transact(Sandbox, project, name, make, cause, new=True)
    return True


async def _placed(control: Control, project: str, template_id: str) -> tuple[SandboxSpec, str, Placed]:
    """What a member is, where, and why there: as ``sandbox.create`` has it that says nothing but the template."""
    template = await control.get(Template, project, template_id)
    template.require_startable()
    artifact = None if template.artifact_id is None else await control.find(Artifact, ids.SYSTEM_PROJECT, template.artifact_id)
    if template.recipe is None or artifact is None or artifact.ref is None:
        raise no_ready_replica(f"template {template_id} is {template.state.value}", [], at_work=template.active_job is not None)
    spec = SandboxSpec(template_id=template.id, artifact=artifact.ref, recipe=template.recipe, driver=template.request.driver)
    need = Wish().need(spec.recipe.cpu, spec.recipe.memory_mb, spec.driver)
    return spec, *place(for_template(control, template, "spread"), need, Wish())
