"""``sandbox.wait-port``: what only waits for something that happens by itself, and changes nothing."""

from __future__ import annotations

from typing import Final

from bus.endpoints import Reply
from domain.sandboxes import commands as c
from domain.sandboxes.sandbox import Sandbox, SandboxState
from handlers.control import Control
from handlers.dispatch import Asked

_ENDED: Final = frozenset({SandboxState.STOPPED, SandboxState.DEAD})


async def port(control: Control, asked: Asked, command: c.SandboxWaitPort) -> Reply:
    """An exit beats the port, the port beats the time-out (reference/miren-sandbox.md §6.5). Refused for a port that was not declared."""
    identifier = command.sandbox_id
    (await control.get(Sandbox, asked.project, identifier)).require_port(command.port)

    async def settled() -> bool:
        sandbox = await control.get(Sandbox, asked.project, identifier)
        return sandbox.state in _ENDED or sandbox.require_port(command.port).status == "listening"

    finished = await asked.wait(control, "sandbox", identifier, settled, command.wait_s)
    sandbox = await control.get(Sandbox, asked.project, identifier)
    seen = sandbox.require_port(command.port)
    result = {"sandbox_id": identifier, **seen.model_dump(mode="json"), "settled": finished}
    return Reply(result, identifier, await control.position(Sandbox, asked.project, identifier))
