"""``pool.*``, and the hand-over: a sandbox that waits, given to whoever asks for a new one of its template."""

from __future__ import annotations

from typing import Any

from bus.endpoints import Reply
from bus.store import Part
from domain.kernel.errors import Refused, not_found
from domain.sandboxes import pool_commands as c
from domain.sandboxes.commands import SandboxCreate
from domain.sandboxes.pool import Pool, PoolSettings, PoolState
from domain.sandboxes.sandbox import Sandbox, Ttl
from handlers.commands.aliases import resolve_template
from handlers.control import Control, existing
from handlers.dispatch import Asked
from handlers.placing import status_of

PLAIN = frozenset({"template", "labels", "ttl_s", "ttl_kind", "on_ttl", "auto_resume", "wait_s", "strategy"})
"""What a caller may say and still be given a sandbox that waits: nothing that decides how, or where, one starts."""


async def set_(control: Control, asked: Asked, command: c.PoolSet) -> Reply:
    """Make it, or change what is given."""
    template = await resolve_template(control, asked.project, command.template)
    given = command.model_dump(include={"desired", "maximum", "warm"}, exclude_none=True)
    if command.idle_s is not None:
        given["idle_s"] = None if command.idle_s < 0 else command.idle_s

    def decide(pool: Pool | None) -> Pool:
        known = PoolSettings() if pool is None or pool.state is PoolState.GONE else pool.settings
        settings = known.model_copy(update=given)
        if settings.desired > settings.maximum:
            raise Refused("pool.above-maximum", f"the pool has at most {settings.maximum} members", details={"maximum": settings.maximum})
        if pool is None:
            return Pool.create(template.id, asked.cause.at, settings)
        pool.configure(asked.cause.at, settings)
        return pool

    await control.store.transact(Pool, asked.project, template.id, decide, asked.cause)
    return await _settled(control, asked, template.id, command.wait_s)


async def delete(control: Control, asked: Asked, command: c.PoolDelete) -> Reply:
    """Stop what it has; it is gone when that is."""
    template_id = (await resolve_template(control, asked.project, command.template)).id
    await control.change(Pool, asked.project, template_id, asked.cause, lambda p: p.request_delete(asked.cause.at))
    return await _settled(control, asked, template_id, command.wait_s)


async def _settled(control: Control, asked: Asked, template_id: str, wait_s: float) -> Reply:
    async def settled() -> bool:
        pool = await control.get(Pool, asked.project, template_id)
        whole = len(pool.waiting) == len(pool.members) == pool.settings.desired
        return pool.state is PoolState.GONE or (pool.state is PoolState.ACTIVE and whole)

    done = await asked.wait(control, Pool.TOPIC, template_id, settled, wait_s)
    loaded = await control.store.load(Pool, asked.project, template_id)
    pool = loaded.aggregate
    if pool is None:
        raise not_found(Pool.TOPIC, template_id)
    result = {
        "template_id": template_id,
        "state": pool.state.value,
        "desired": pool.settings.desired,
        "current": len(pool.members),
        "ready": len(pool.waiting),
        "settled": done,
    }
    return Reply(result, template_id, loaded.seq)


# --------------------------------------------------------------------------------------------------------- hand-over


async def claimed(control: Control, asked: Asked, template_id: str, command: SandboxCreate, ttl: Ttl | None) -> tuple[str, int] | None:
    """The sandbox that this caller has been given, and where in the log that stands; None: he needs a new one.

    Pool and sandbox say it in one atomic commit, under the caller's command: the same command again finds it in the pool's history.
    """
    loaded = await control.store.load(Pool, asked.project, template_id)
    if loaded.aggregate is None:
        return None
    if asked.command_id in loaded.commands:
        again = await control.change(Pool, asked.project, template_id, asked.cause, lambda _: None)
        return (str(again.reply["sandbox_id"]), again.seq) if "sandbox_id" in again.reply else None
    for name in loaded.aggregate.waiting if loaded.aggregate.settings.warm else ():
        if name not in control.fleet.pools.claiming and await _at_hand(control, asked.project, name):
            try:
                given = await _hand_over(control, asked, template_id, name, command, ttl)
            except Refused as refused:
                if refused.code not in {"pool.illegal-state", "sandbox.illegal-state"}:
                    raise
            else:
                if given is not None:
                    return given
    return None


def missed(control: Control, asked: Asked, template_id: str, command: SandboxCreate, sandbox_id: str) -> Part[Pool] | None:
    """A warm pool's part in the creation of a sandbox that it could not give; None: there is no such pool, or the caller wants his own."""
    if not (plain(command) and control.fleet.pools.warm(asked.project, template_id)):
        return None

    def miss(pool: Pool) -> None:
        pool.miss(asked.cause.at, sandbox_id)

    return Part(Pool, asked.project, template_id, existing(Pool, template_id, miss), lambda _: {"sandbox_id": sandbox_id})


def plain(command: SandboxCreate) -> bool:
    """Would any sandbox of the template do?"""
    said = command.model_dump(exclude_defaults=True)
    return command.template is not None and command.strategy == "spread" and said.keys() <= PLAIN


async def _at_hand(control: Control, project: str, name: str) -> bool:
    """Is it on a node that is there and stays?"""
    sandbox = await control.find(Sandbox, project, name)
    node = None if sandbox is None else control.fleet.nodes.get(sandbox.node_id)
    return node is not None and status_of(node) == "ready"


async def _hand_over(
    control: Control, asked: Asked, template_id: str, name: str, command: SandboxCreate, ttl: Ttl | None
) -> tuple[str, int] | None:
    """None: somebody else was quicker."""
    at, ours = asked.cause.at, False

    def out_of_pool(pool: Pool) -> None:
        nonlocal ours
        ours = pool.hand_over(at, name)

    def to_caller(sandbox: Sandbox) -> None:
        if ours:
            sandbox.hand_over(at, asked.command_id, command.labels, ttl)

    def said(_: Any) -> dict[str, Any]:
        return {"sandbox_id": name}

    control.fleet.pools.claiming.add(name)
    try:
        parts: list[Part[Any]] = [
            Part(Pool, asked.project, template_id, existing(Pool, template_id, out_of_pool), said),
            Part(Sandbox, asked.project, name, existing(Sandbox, name, to_caller), said),
        ]
        done = await control.store.transact_many(parts, asked.cause)
    finally:
        control.fleet.pools.claiming.discard(name)
    if not done[0].changed and not done[0].replayed:
        return None
    return str(done[0].reply["sandbox_id"]), max(part.seq for part in done)
