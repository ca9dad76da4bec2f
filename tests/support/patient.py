"""A caller as a sane client is one: explicit command ids, and the same id again after every refusal that says it is worth it."""

from __future__ import annotations

import base64
import contextlib
import secrets
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any, Self

from support.waiting import eventually

from bus.client import Caller
from bus.connection import Connection, connect_from
from domain.kernel.errors import Refused

PATIENCE_S = 60.0
ONCE_S = 5.0
"""How long one sending of a command may stay without an answer, beyond its own ``wait_s``."""


class Patient:
    """Commands of one project. ``answers`` has what was answered, by command id; ``refused`` every refusal that came before."""

    def __init__(self, nc: Connection, prefix: str = "") -> None:
        self.nc = nc
        self.caller = Caller(nc)
        self.project = "default"
        self.answers: dict[str, dict[str, Any]] = {}
        self.bodies: dict[str, tuple[str, dict[str, Any]]] = {}
        self.refused: list[Refused] = []
        self.seq = 0
        self.takes_for_an_answer: frozenset[str] = frozenset()
        """Codes that say for longer than anybody wants to wait that something is not possible now."""
        self._prefix = prefix or secrets.token_hex(4)
        self._number = 0

    @classmethod
    @contextlib.asynccontextmanager
    async def connect(cls, directory: Path, prefix: str = "") -> AsyncIterator[Self]:
        nc = await connect_from(directory, "patient", on_closed=lambda: None)
        try:
            yield cls(nc, prefix)
        finally:
            await nc.close()

    def new_id(self) -> str:
        self._number += 1
        return f"{self._prefix}-{self._number}"

    async def cmd(self, what: str, command_id: str | None = None, /, **body: Any) -> dict[str, Any]:
        """The result. Raises the ``Refused`` that says that trying again is of no use."""
        identifier = command_id or self.new_id()
        self.bodies[identifier] = (what, body)

        async def answered() -> dict[str, Any] | None:
            try:
                return await self.caller.command(self.project, what, body, identifier, timeout=ONCE_S)
            except Refused as refused:
                self.refused.append(refused)
                if not refused.retryable or refused.details.get("settled") or refused.code in self.takes_for_an_answer:
                    raise  # for good, or for good under this id
                return None

        reply = await eventually(answered, within=PATIENCE_S)
        self.answers[identifier] = reply
        self.seq = max(self.seq, int(reply["seq"]))
        return reply["result"]

    async def again(self, command_id: str) -> dict[str, Any]:
        """The whole reply to a command that was given before."""
        what, body = self.bodies[command_id]
        await self.cmd(what, command_id, **body)
        return self.answers[command_id]

    async def items(self, view: str, verb: str = "list", **body: Any) -> list[dict[str, Any]]:
        """What a view says, with everything that this caller has done."""

        async def found() -> list[list[dict[str, Any]]]:
            try:
                return [(await self.caller.query(self.project, view, verb, {"min_seq": self.seq, **body}))["items"]]
            except Refused as refused:
                if not refused.retryable:
                    raise
                return []

        return (await eventually(found, within=PATIENCE_S))[0]

    async def item(self, view: str, identifier: str) -> dict[str, Any]:
        return (await self.items(view, "get", id=identifier))[0]

    async def job(self, job_id: str) -> dict[str, Any]:
        """The job once it has ended. Raises ``AssertionError`` unless it ended well."""

        async def ended() -> dict[str, Any] | None:
            job = await self.item("jobs", job_id)
            return job if job["status"] in {"READY", "FAILED"} else None

        job = await eventually(ended, within=PATIENCE_S)
        assert job["status"] == "READY", job
        return job

    async def sandbox(self, sandbox_id: str, state: str) -> dict[str, Any]:
        """The sandbox once it is in ``state``."""

        async def there() -> dict[str, Any] | None:
            try:
                sandbox = await self.item("sandboxes", sandbox_id)
            except Refused as refused:
                if refused.code != "sandbox.not-found":
                    raise
                return None  # a clone that was promised
            return sandbox if sandbox["state"] == state else None

        return await eventually(there, within=PATIENCE_S)

    async def sh(self, sandbox_id: str, script: str) -> str:
        """What a shell line prints. It must bear being run again: an interrupted one is, under another id, and one whose output got lost.

        Each run leaves its command id in ``/acts``, so that one id that ran twice is found.
        """
        while True:
            identifier = self.new_id()
            marked = ["/bin/sh", "-c", f"echo {identifier} >> /acts; {script}"]
            try:
                done = await self.cmd("sandbox.exec", identifier, sandbox_id=sandbox_id, cmd=marked, timeout_s=10)
            except Refused as refused:
                if refused.code != "sandbox.exec-interrupted":
                    raise
                continue
            if not done.get("repeated"):
                return base64.b64decode(done["stdout"]).decode()
