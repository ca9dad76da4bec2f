"""Sandboxes: started, used, frozen, put back, multiplied, ended."""

from __future__ import annotations

import asyncio
import base64
import contextlib
from collections.abc import AsyncGenerator, AsyncIterator, Mapping, Sequence
from typing import Any, Literal, Unpack

from domain.sandboxes import commands as c
from strandline.client import replies as r
from strandline.client.call import Call, given, timed_out
from strandline.client.changes import changes
from strandline.client.events import Events
from strandline.client.items import Item, PlacementVerdict, Sandbox
from strandline.client.noun import Noun
from strandline.client.steps import Step, fold

EXEC_TIMEOUT_S = 60.0
"""How long a program may run when the caller does not say."""


class Sandboxes(Noun):
    """``sandbox.*`` and the views ``sandboxes`` and ``usage``."""

    async def create(
        self,
        template: str | None = None,
        *,
        snapshot_id: str | None = None,
        name: str | None = None,
        cpu: float | None = None,
        memory_mb: int | None = None,
        env: Mapping[str, str] | None = None,
        cmd: Sequence[str] | None = None,
        ports: Sequence[int] | None = None,
        ttl_s: float | None = None,
        ttl_kind: Literal["absolute", "idle"] | None = None,
        on_ttl: Literal["delete", "pause"] | None = None,
        auto_resume: bool | None = None,
        restart: Literal["never", "always"] | None = None,
        node: str | None = None,
        node_labels: Mapping[str, str] | None = None,
        strategy: Literal["spread", "pack", "affinity"] | None = None,
        labels: Mapping[str, str] | None = None,
        disks: Sequence[Any] | None = None,
        egress: Mapping[str, Any] | None = None,
        **call: Unpack[Call],
    ) -> r.SandboxAccepted:
        """Start a sandbox from a template or from a snapshot."""
        return await self._calls.command(
            c.SandboxCreate,
            r.SandboxAccepted,
            call,
            template=template,
            snapshot_id=snapshot_id,
            name=name,
            cpu=cpu,
            memory_mb=memory_mb,
            env=env,
            cmd=cmd,
            ports=ports,
            ttl_s=ttl_s,
            ttl_kind=ttl_kind,
            on_ttl=on_ttl,
            auto_resume=auto_resume,
            restart=restart,
            node=node,
            node_labels=node_labels,
            strategy=strategy,
            labels=labels,
            disks=disks,
            egress=egress,
        )

    async def pause(self, sandbox_id: str, **call: Unpack[Call]) -> r.SandboxState:
        """Freeze every process; memory stays."""
        return await self._calls.command(c.SandboxPause, r.SandboxState, call, sandbox_id=sandbox_id)

    async def resume(self, sandbox_id: str, **call: Unpack[Call]) -> r.SandboxState:
        """Let a paused sandbox go on."""
        return await self._calls.command(c.SandboxResume, r.SandboxState, call, sandbox_id=sandbox_id)

    async def stop(self, sandbox_id: str, *, grace_s: float | None = None, **call: Unpack[Call]) -> r.SandboxState:
        """Ask it to end, and end it after ``grace_s`` seconds. Allowed in every state."""
        return await self._calls.command(c.SandboxStop, r.SandboxState, call, sandbox_id=sandbox_id, grace_s=grace_s)

    async def delete(self, sandbox_id: str, **call: Unpack[Call]) -> r.SandboxState:
        """End it at once. Allowed in every state."""
        return await self._calls.command(c.SandboxDelete, r.SandboxState, call, sandbox_id=sandbox_id)

    async def rollback(self, sandbox_id: str, snapshot_id: str, **call: Unpack[Call]) -> r.RollbackAccepted:
        """Put it back to one of its snapshots, as the next generation."""
        return await self._calls.command(c.SandboxRollback, r.RollbackAccepted, call, sandbox_id=sandbox_id, snapshot_id=snapshot_id)

    async def clone(self, sandbox_id: str, count: int = 1, **call: Unpack[Call]) -> r.SandboxesCloned:
        """Start ``count`` sandboxes from what this one is now."""
        return await self._calls.command(c.SandboxClone, r.SandboxesCloned, call, sandbox_id=sandbox_id, count=count)

    async def set_ttl(
        self, sandbox_id: str, ttl_s: float, *, ttl_kind: Literal["absolute", "idle"] | None = None, **call: Unpack[Call]
    ) -> r.TtlSet:
        """A new time to live in seconds, counted from now; -1 for ever."""
        return await self._calls.command(c.SandboxSetTtl, r.TtlSet, call, sandbox_id=sandbox_id, ttl_s=ttl_s, ttl_kind=ttl_kind)

    async def wait_port(self, sandbox_id: str, port: int, **call: Unpack[Call]) -> r.PortServed:
        """Wait until something listens on a declared port, at most ``wait_s``; ``settled`` says whether it does."""
        return await self._calls.command(c.SandboxWaitPort, r.PortServed, call, sandbox_id=sandbox_id, port=port)

    async def exec(
        self,
        sandbox_id: str,
        cmd: Sequence[str],
        *,
        env: Mapping[str, str] | None = None,
        cwd: str | None = None,
        user: str | None = None,
        stdin: bytes | None = None,
        timeout_s: float | None = None,
        **call: Unpack[Call],
    ) -> r.Executed:
        """Run one more program inside and return its exit code and output. ``cmd`` is passed on as it is; no shell reads it."""
        seconds = EXEC_TIMEOUT_S if timeout_s is None else timeout_s
        call.setdefault("timeout", seconds + EXEC_TIMEOUT_S)
        return await self._calls.command(
            c.SandboxExec,
            r.Executed,
            call,
            sandbox_id=sandbox_id,
            cmd=list(cmd),
            env=env,
            cwd=cwd,
            user=user,
            stdin=None if stdin is None else base64.b64encode(stdin).decode(),
            timeout_s=timeout_s,
        )

    async def update_limits(
        self,
        sandbox_id: str,
        *,
        cpu: float | None = None,
        memory_mb: int | None = None,
        pids: int | None = None,
        **call: Unpack[Call],
    ) -> r.SandboxState:
        """Other limits while it runs; what is None stays. Raises ``sandbox.unsupported`` and ``capacity.exhausted``."""
        return await self._calls.command(
            c.SandboxUpdateLimits, r.SandboxState, call, sandbox_id=sandbox_id, cpu=cpu, memory_mb=memory_mb, pids=pids
        )

    async def abandon(self, sandbox_id: str, **call: Unpack[Call]) -> r.Abandoned:
        """Give up undoing a failed start; the reply says what is left behind."""
        return await self._calls.command(c.SandboxAbandon, r.Abandoned, call, sandbox_id=sandbox_id)

    async def steps(self, sandbox_id: str) -> Sequence[Step]:
        """The steps of its start, done, undone or waiting. Raises ``sandbox.not-found``."""
        await self.get(sandbox_id)
        events = Events(self._calls).read(type="provisioning", id=sandbox_id)
        return fold([event async for event in events])

    async def get(self, sandbox_id: str, *, as_of: int | str | None = None) -> Sandbox:
        """One sandbox. Raises ``sandbox.not-found``."""
        return await self._calls.one("sandboxes", Sandbox, "sandbox", sandbox_id, as_of)

    def list(self, *, as_of: int | str | None = None, limit: int | None = None, **filters: Any) -> AsyncIterator[Sandbox]:
        """Sandboxes whose fields equal the filters; dead ones too."""
        return self._calls.each("sandboxes", Sandbox, {**filters, "as_of": as_of}, limit=limit)

    def why(self, sandbox_id: str | None = None, *, limit: int | None = None, **wishes: Any) -> AsyncIterator[PlacementVerdict]:
        """What placement says of each node now: for a sandbox, or for one of a ``template`` or ``snapshot_id`` with these wishes.

        ``cpu``, ``memory_mb``, ``driver``, ``node``, ``node_labels``, ``strategy`` as in ``create``. Nothing is created.
        """
        asked = {name: value for name, value in wishes.items() if value is not None}
        return self._calls.each("placement", PlacementVerdict, {**asked, **given(sandbox_id=sandbox_id)}, limit=limit, verb="explain")

    def usage(self, *, limit: int | None = None, **filters: Any) -> AsyncIterator[Item]:
        """What sandboxes were promised and for how long; ended ones too."""
        return self._calls.each("usage", Item, filters, limit=limit)

    async def watch(self, sandbox_id: str) -> AsyncGenerator[Sandbox, None]:
        """The sandbox now and after every change, until it is DEAD."""
        last: Sandbox | None = None
        async with contextlib.aclosing(changes(self._calls, "sandbox", id=sandbox_id)) as moves:
            async for _ in moves:
                sandbox = await self.get(sandbox_id)
                if sandbox != last:
                    yield sandbox
                if sandbox.state == "DEAD":
                    return
                last = sandbox

    async def wait(self, sandbox_id: str, *states: str, timeout: float = 60) -> Sandbox:
        """The sandbox once it is in one of the states (RUNNING when none is named), or DEAD: then nothing else will come.

        Raises ``wait.timeout``.
        """
        wanted = {*(states or ("RUNNING",)), "DEAD"}
        last = "unknown"
        try:
            async with asyncio.timeout(timeout), contextlib.aclosing(self.watch(sandbox_id)) as seen:
                async for sandbox in seen:
                    if sandbox.state in wanted:
                        return sandbox
                    last = sandbox.state
        except TimeoutError:
            pass
        raise timed_out(f"sandbox {sandbox_id}", timeout, sandbox_id=sandbox_id, state=last)
