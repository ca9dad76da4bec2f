"""Speaking to one control plane among several, past the queue group that shares commands out among them."""

from __future__ import annotations

import secrets
from typing import Any

import orjson

from bus.endpoints import Request
from handlers.plane import ControlPlane


async def ask(plane: ControlPlane, name: str, body: dict[str, Any], command_id: str | None = None) -> dict[str, Any]:
    """The result of a command that this control plane takes, and no other one."""
    request = Request("default", name, orjson.dumps(body), command_id or secrets.token_hex(8), explicit=command_id is not None)
    return dict((await plane._dispatcher.handle(request)).result)
