"""``sandbox.*``: create, pause, resume, stop, delete, set-ttl, abandon. Rollback and clone stand with the snapshots they use."""

from __future__ import annotations

import time
from dataclasses import dataclass
from datetime import timedelta
from typing import Any

from bus.endpoints import Reply
from bus.store import Committed, Part
from domain.kernel import ids
from domain.kernel.errors import Refused
from domain.nodes.orders import Failure
from domain.nodes.placement import no_ready_replica
from domain.sandboxes import commands as c
from domain.sandboxes.egress import EgressPolicy
from domain.sandboxes.placed import Placed
from domain.sandboxes.provisioning import Provisioning
from domain.sandboxes.sandbox import Sandbox, SandboxState, Ttl
from domain.sandboxes.spec import ArtifactRef, Recipe, SandboxSpec
from domain.templates.artifact import Artifact
from domain.templates.compat import Compat
from domain.templates.snapshot import Snapshot
from domain.templates.template import Template
from handlers.commands import disk_mounts, pools
from handlers.commands.aliases import resolve_template
from handlers.control import Control, Parts, existing, unchanged
from handlers.dispatch import Asked
from handlers.metrics import stage
from handlers.placing import Wish, candidate, for_snapshot, for_template, on_snapshot, place, place_snapshot
from handlers.processes import removal
from handlers.processes.sandboxes import STARTING


@dataclass(frozen=True, slots=True)
class Plan:
    """What is to be created, where, and why there."""

    spec: SandboxSpec
    node_id: str
    placed: Placed


async def create(control: Control, asked: Asked, command: c.SandboxCreate) -> Reply:
    """Place a sandbox and request it; provisioning follows from the event."""
    sandbox_id = ids.sandbox_id(asked.project, asked.command_id)
    if (waiting := await _handed_over(control, asked, command, sandbox_id)) is not None:
        return waiting
    try:
        done = await _request(control, asked, command, sandbox_id)
    except Refused:  # a repeated command gets its first answer, also when there would be another one now
        if await control.find(Sandbox, asked.project, sandbox_id) is None:
            raise
        done = await control.change(Sandbox, asked.project, sandbox_id, asked.cause, unchanged)
    return await _settled(control, asked, done, command.wait_s)


async def _handed_over(control: Control, asked: Asked, command: c.SandboxCreate, own_id: str) -> Reply | None:
    """One that waits in its template's pool; None: there is none, or this command has started one of its own before."""
    if not control.fleet.pools.known or not pools.plain(command):
        return None
    template = await resolve_template(control, asked.project, command.template or "")
    if (asked.project, template.id) not in control.fleet.pools.known or await control.find(Sandbox, asked.project, own_id) is not None:
        return None
    given = await pools.claimed(control, asked, template.id, command, _ttl(command))
    if given is None:
        return None
    sandbox = await control.get(Sandbox, asked.project, given[0])
    result = {**_created(sandbox), "settled": True, "unenforced": list(_unenforced(control, sandbox)), "handed_over": sandbox.id != own_id}
    return Reply(result, sandbox.id, given[1])


async def _request(control: Control, asked: Asked, command: c.SandboxCreate, sandbox_id: str) -> Committed[Sandbox]:
    command = await disk_mounts.placed(control, asked.project, command) if command.disks else command
    plan = await (_plan if control.metrics is None else _measured_plan)(control, asked.project, command)
    disk_mounts.require_driver(control, plan.spec, plan.node_id)
    control.fleet.promise(sandbox_id, plan.node_id, plan.spec.recipe.cpu, plan.spec.recipe.memory_mb)
    try:
        done = await _record(control, asked, sandbox_id, plan, command)
    except BaseException:
        control.fleet.withdraw(sandbox_id)
        raise
    if not done.changed:
        control.fleet.withdraw(sandbox_id)
    return done


def _ttl(command: c.SandboxCreate) -> Ttl | None:
    """None: for ever, and nothing to do about it."""
    if command.ttl_s is None and not command.auto_resume:
        return None
    return Ttl(seconds=command.ttl_s, kind=command.ttl_kind, on_ttl=command.on_ttl, auto_resume=command.auto_resume)


async def _record(control: Control, asked: Asked, sandbox_id: str, plan: Plan, command: c.SandboxCreate) -> Committed[Sandbox]:
    spec, node_id, ttl = plan.spec, plan.node_id, _ttl(command)

    def decide(sandbox: Sandbox | None) -> Sandbox:
        return sandbox or Sandbox.create(sandbox_id, asked.cause.at, spec, node_id, ttl, placed=plan.placed)

    disks = await disk_mounts.parts(control, asked, sandbox_id, spec)
    if spec.snapshot_id is None and (pool := pools.missed(control, asked, spec.template_id, command, sandbox_id)) is not None:
        own: Part[Sandbox] = Part(Sandbox, asked.project, sandbox_id, decide, _created, new=True)
        of_pool, created = await control.store.transact_many([pool, own], asked.cause)
        given = of_pool.reply.get("sandbox_id", sandbox_id)  # another sending of this very command may have been given one that waited
        return created if given == sandbox_id else await control.change(Sandbox, asked.project, given, asked.cause, unchanged)
    if spec.snapshot_id is None and not disks:
        return await control.store.transact(Sandbox, asked.project, sandbox_id, decide, asked.cause, _created, new=True)
    parts: Parts = [Part(Sandbox, asked.project, sandbox_id, decide, _created, new=True), *disks]
    if spec.snapshot_id is not None:
        parts.append(await _standing(control, asked, sandbox_id, spec, node_id))
    return (await control.store.transact_many(parts, asked.cause))[0]


async def _standing(control: Control, asked: Asked, sandbox_id: str, spec: SandboxSpec, node_id: str) -> Part[Snapshot]:
    """The share of the snapshot that it is made of."""
    identifier = spec.snapshot_id or ""
    await _note_artifact(control, spec, node_id)

    def stand(snapshot: Snapshot) -> None:
        snapshot.place(asked.cause.at, node_id)
        snapshot.attach(asked.cause.at, sandbox_id, node_id, 0)

    return Part(Snapshot, asked.project, identifier, existing(Snapshot, identifier, stand))


async def _note_artifact(control: Control, spec: SandboxSpec, node_id: str) -> None:
    """A node that starts from a snapshot fetches the artifact too, whether it has a replica or not: there is something to clean up."""
    artifact = spec.artifact.artifact_id
    known = await control.find(Artifact, ids.SYSTEM_PROJECT, artifact)
    if known is not None and node_id in known.placements:
        return  # that the leader of the log says so too costs a way there and back, and changes nothing
    cause = control.own_cause(ids.SYSTEM_PROJECT, "artifact", artifact, "placed", node_id, spec.snapshot_id or "")
    await control.change(Artifact, ids.SYSTEM_PROJECT, artifact, cause, lambda a: a.placed(cause.at, node_id))


def _created(sandbox: Sandbox) -> dict[str, Any]:
    return {"sandbox_id": sandbox.id, "node_id": sandbox.node_id, "state": sandbox.state.value}


async def _plan(control: Control, project: str, command: c.SandboxCreate) -> Plan:
    """The specification and the node, from a template or from a snapshot."""
    if command.snapshot_id is not None:
        return await _plan_from_snapshot(control, project, command)
    with stage(control, "resolve"):
        template = await resolve_template(control, project, command.template or "")
        template.require_startable()
    with stage(control, "request"):
        artifact = None if template.artifact_id is None else await control.find(Artifact, ids.SYSTEM_PROJECT, template.artifact_id)
        if template.recipe is None or artifact is None or artifact.ref is None:
            raise no_ready_replica(f"template {template.id} is {template.state.value}", [], at_work=template.active_job is not None)
        spec = _spec(command, template.id, None, artifact.ref, template.recipe, template.request.driver)
    with stage(control, "place"):
        wish = wish_of(command)
        need = wish.need(spec.recipe.cpu, spec.recipe.memory_mb, spec.driver, at_work=template.active_job is not None)
        return Plan(spec, *place(for_template(control, template, wish.strategy), need, wish))


async def _measured_plan(control: Control, project: str, command: c.SandboxCreate) -> Plan:
    began, code = time.perf_counter(), "ok"
    try:
        return await _plan(control, project, command)
    except Refused as refused:
        code = refused.code
        raise
    finally:
        if control.metrics is not None:
            control.metrics.observe("strandline_template_resolve_seconds", time.perf_counter() - began, code=code)


async def _plan_from_snapshot(control: Control, project: str, command: c.SandboxCreate) -> Plan:
    """Where it is, if there is room; else wherever it can be fetched."""
    with stage(control, "resolve"):
        snapshot = await control.get(Snapshot, project, command.snapshot_id or "")
        snapshot.require_usable(command.node)
    with stage(control, "request"):
        template = await control.find(Template, project, snapshot.template_id)
        driver = snapshot.driver or (None if template is None else template.request.driver)
        spec = _spec(command, snapshot.template_id, snapshot.id, snapshot.artifact, snapshot.recipe, driver)
        spec = spec.model_copy(update={"snapshot_manifest": snapshot.stored_as.manifest if snapshot.stored_as else None})
    with stage(control, "place"):
        wish = wish_of(command)
        candidates = for_snapshot(control, snapshot, wish.strategy)
        need = on_snapshot(snapshot, wish, candidates).need(spec.recipe.cpu, spec.recipe.memory_mb, spec.driver)
        return Plan(spec, *place_snapshot(snapshot, candidates, need, wish))


def _spec(
    command: c.SandboxCreate, template_id: str, snapshot_id: str | None, artifact: ArtifactRef, recipe: Recipe, driver: str | None
) -> SandboxSpec:
    wishes = {
        "cpu": command.cpu,
        "memory_mb": command.memory_mb,
        "cmd": command.cmd,
        "ports": command.ports or None,
        "env": {**recipe.env, **command.env} if command.env else None,
    }
    changed = recipe.model_copy(update={name: wish for name, wish in wishes.items() if wish is not None})
    return SandboxSpec(
        template_id=template_id,
        snapshot_id=snapshot_id,
        artifact=artifact,
        recipe=changed,
        name=command.name,
        labels=command.labels,
        driver=driver,
        egress=None if command.egress is None else EgressPolicy.model_validate(command.egress.model_dump()),
        disks=disk_mounts.uses(command),
        restart=command.restart,
    )


def wish_of(command: c.SandboxCreate) -> Wish:
    """What the command says about where."""
    bounds = tuple(name for name in ("cpu", "memory_mb") if getattr(command, name) is not None)
    lets_out = command.egress is not None and command.egress.lets_out
    return Wish(command.node, command.node_labels, command.strategy, bounds, egress=lets_out)


def _unenforced(control: Control, sandbox: Sandbox) -> tuple[str, ...]:
    """Which bounds of its recipe nobody keeps where it runs."""
    node = control.fleet.nodes.get(sandbox.node_id)
    return () if node is None else candidate(node, Compat.OK, replica=True).unenforced(sandbox.spec.driver)


async def _settled(control: Control, asked: Asked, done: Committed[Sandbox], wait_s: float) -> Reply:
    """The reply once the sandbox has started, or failed to, or the caller has waited long enough."""
    sandbox = done.aggregate

    async def settled() -> bool:
        in_time = await removal.in_time(control, asked.project, sandbox.spec.template_id, done.seq)
        return in_time is not None and (await control.get(Sandbox, asked.project, sandbox.id)).state not in STARTING

    finished = await asked.wait(control, "sandbox", sandbox.id, settled, wait_s)
    sandbox = await control.get(Sandbox, asked.project, sandbox.id)
    if wait_s and (failure := sandbox.start_failure) is not None:
        details = {"sandbox_id": sandbox.id, "cause": failure.code, **failure.details}
        raise Refused("sandbox.startup-failed", failure.message, details=details)
    other = sandbox.id != ids.sandbox_id(asked.project, asked.command_id)
    result = {**_created(sandbox), "settled": finished, "unenforced": list(_unenforced(control, sandbox)), "handed_over": other}
    return Reply(result, sandbox.id, await control.position(Sandbox, asked.project, sandbox.id))


async def pause(control: Control, asked: Asked, command: c.SandboxPause) -> Reply:
    """Freeze every process; memory stays."""
    deadline = asked.cause.at + timedelta(seconds=control.deadlines.operation_s)
    return await operate(control, asked, command, lambda s: s.request_pause(asked.cause.at, asked.command_id, deadline))


async def resume(control: Control, asked: Asked, command: c.SandboxResume) -> Reply:
    """Let a paused sandbox go on."""
    deadline = asked.cause.at + timedelta(seconds=control.deadlines.operation_s)
    return await operate(control, asked, command, lambda s: s.request_resume(asked.cause.at, asked.command_id, deadline))


async def stop(control: Control, asked: Asked, command: c.SandboxStop) -> Reply:
    """SIGTERM, grace, SIGKILL, tear down."""
    return await operate(control, asked, command, lambda s: s.request_stop(asked.cause.at, asked.command_id, command.grace_s), over=True)


async def delete(control: Control, asked: Asked, command: c.SandboxDelete) -> Reply:
    """Tear down at once, whatever the state."""
    return await operate(control, asked, command, lambda s: s.request_delete(asked.cause.at, asked.command_id), over=True)


async def set_ttl(control: Control, asked: Asked, command: c.SandboxSetTtl) -> Reply:
    """A new time to live, counted from now."""
    done = await control.change(
        Sandbox, asked.project, command.sandbox_id, asked.cause, lambda s: s.set_ttl(asked.cause.at, command.ttl_s, command.ttl_kind), _ends
    )
    return Reply(done.reply, command.sandbox_id, done.seq)


def _ends(sandbox: Sandbox) -> dict[str, Any]:
    return {"ends_at": None if sandbox.ends_at is None else sandbox.ends_at.isoformat()}


async def abandon(control: Control, asked: Asked, command: c.SandboxAbandon) -> Reply:
    """An operator gives up on undoing; what is left behind is named."""

    def left(provisioning: Provisioning) -> dict[str, Any]:
        return {"uncompensated": list(provisioning.uncompensated)}

    await control.get(Sandbox, asked.project, command.sandbox_id)
    done = await control.change(Provisioning, asked.project, command.sandbox_id, asked.cause, lambda p: p.abandon(asked.cause.at), left)
    return Reply(left(done.aggregate), command.sandbox_id, done.seq)


async def operate(control: Control, asked: Asked, command: Any, decide: Any, *, over: bool = False) -> Reply:
    """One method of one sandbox, and the wait for what it starts: for ``over`` until it is dead, else until no operation is left."""
    identifier = command.sandbox_id
    done = await control.change(Sandbox, asked.project, identifier, asked.cause, decide, lambda s: {"state": s.state.value})

    async def settled() -> bool:
        sandbox = await control.get(Sandbox, asked.project, identifier)
        return sandbox.state is SandboxState.DEAD or (not over and sandbox.operation is None)

    finished = await asked.wait(control, "sandbox", identifier, settled, command.wait_s)
    if command.wait_s and finished and not over:
        await _raise_failure(control, asked, identifier)
    sandbox = await control.get(Sandbox, asked.project, identifier)
    seq = await control.position(Sandbox, asked.project, identifier) if command.wait_s else done.seq
    return Reply({"state": sandbox.state.value, "settled": finished}, identifier, seq)


async def _raise_failure(control: Control, asked: Asked, sandbox_id: str) -> None:
    """The caller waited for an operation: if the log says that it failed, so does the reply."""
    for commit in reversed(await control.store.read(asked.project, "sandbox", sandbox_id)):
        for event in commit.events:
            if event["data"].get("command") != asked.command_id:
                continue
            if event["type"] == "sandbox.operation-failed":
                raise Failure.model_validate(event["data"]["failure"]).refusal()
            if event["type"] == "sandbox.operation-expired":
                raise Refused("node.offline", "the node did not answer in time", retryable=True, details={"settled": True})
            return
