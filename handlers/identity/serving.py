"""The issuer at work: its documents on a port, tokens for nodes over the bus, keys that turn. Off unless a port is given for it."""

from __future__ import annotations

import asyncio
import contextlib
import json
from collections.abc import AsyncIterator, Sequence
from http import HTTPStatus
from pathlib import Path
from typing import Any, Final

import structlog

from bus import http
from bus.http import Answer, Asked
from bus.identity import Desk, Token
from domain.kernel.errors import Refused
from domain.sandboxes.sandbox import Sandbox, SandboxState
from handlers.control import Control
from handlers.identity.issuer import AUDIENCE, DISCOVERY, JWKS, TTL_S, Issuer, Workload
from handlers.identity.keys import KeyRing

log = structlog.get_logger(__name__)

TURN_S: Final = 60.0
"""How often the ring is looked at: another control plane may have turned it."""
CACHED: Final = "public, max-age=300"
_ENTITLED: Final = frozenset({SandboxState.PENDING, SandboxState.NOT_READY, SandboxState.RUNNING, SandboxState.PAUSED})


@contextlib.asynccontextmanager
async def serving(
    control: Control, port: int, keys: Path, url: str | None = None, *, audience: Sequence[str] = AUDIENCE, ttl_s: int = TTL_S
) -> AsyncIterator[int]:
    """Issue tokens while the block runs; the port, a free one for 0. ``url``: where verifiers reach it, if not there.

    Raises ``OSError`` when the port is taken, and ``ValueError`` when the keys cannot be read.
    """
    ring = KeyRing(keys, control.clock)
    await asyncio.to_thread(ring.turn)
    issuer = Issuer(ring, "", control.clock, audience, ttl_s)

    async def issue(node: str, project: str, sandbox_id: str) -> Token:
        return await asyncio.to_thread(issuer.issue, await entitled(control, node, project, sandbox_id))

    async with http.serving(_documents(issuer), port) as bound, Desk(control.nc, issue):
        issuer.url = control.issuer = (url or f"http://{http.LOOPBACK}:{bound}").rstrip("/")
        turning = asyncio.create_task(_turning(ring), name="identity keys")
        log.info("identity.serving", address=f"{http.LOOPBACK}:{bound}", issuer=issuer.url)
        try:
            yield bound
        finally:
            control.issuer = ""
            turning.cancel()
            await asyncio.gather(turning, return_exceptions=True)


async def entitled(control: Control, node: str, project: str, sandbox_id: str) -> Workload:
    """The sandbox, if it is there and lives, by the log. Raises ``identity.refused``: none for the dead, nor for another node's."""
    sandbox = await control.find(Sandbox, project, sandbox_id)
    if sandbox is None or sandbox.node_id != node or sandbox.state not in _ENTITLED:
        raise Refused("identity.refused", f"no sandbox {sandbox_id} runs on node {node}")
    return Workload(project, sandbox.spec.template_id, sandbox_id, node)


async def _turning(ring: KeyRing) -> None:
    while True:
        await asyncio.sleep(TURN_S)
        try:
            await asyncio.to_thread(ring.turn)
        except (OSError, ValueError, Refused):
            log.exception("identity.keys-not-turned")


def _documents(issuer: Issuer) -> http.Handler:
    async def answer(asked: Asked) -> Answer:
        match asked.path:
            case path if path == DISCOVERY:
                return _json(issuer.discovery())
            case path if path == JWKS:
                return _json(issuer.jwks())
            case _:
                return http.plain(HTTPStatus.NOT_FOUND, f"GET {DISCOVERY}")

    return answer


def _json(value: dict[str, Any]) -> Answer:
    return Answer(HTTPStatus.OK, {"Content-Type": "application/json", "Cache-Control": CACHED}, json.dumps(value).encode())
