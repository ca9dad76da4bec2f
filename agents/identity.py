"""Tokens of the sandboxes that run here: asked for when one is begun, put into it, and replaced long before they expire.

Nothing waits for it: a token is asked for while the steps of a start run, and is there a moment after the main process began. One that
cannot be had, or put, is tried again; the sandbox runs all the same (reference/miren-sandbox.md §8.4). With its record its renewal ends.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Awaitable, Callable
from typing import Final

import structlog

from agents.drivers.driver import RuntimeFault, TakesIdentity
from agents.node import LocalNode
from agents.records import SandboxRecord
from bus.identity import Token
from domain.kernel.errors import Refused

log = structlog.get_logger(__name__)

RENEW: Final = 0.75
"""After this part of its life a token is replaced: 45 minutes of an hour."""
AGAIN_S: Final = 5.0
AT_ONCE: Final = 8
"""Tokens that are asked for at one time."""
_ALIVE: Final = frozenset({"starting", "running", "paused", "replacing"})
_INSIDE: Final = frozenset({"running", "paused"})

Ask = Callable[[str, str], Awaitable[Token]]
"""Of a project and a sandbox. Raises ``Refused``."""


class Identities:
    """``changed`` is called at every change of a sandbox's record; ``pause_s`` is how long a failure waits."""

    def __init__(self, node: LocalNode, ask: Ask, *, pause_s: float = AGAIN_S) -> None:
        self._node = node
        self._ask = ask
        self._pause_s = pause_s
        self._asking = asyncio.Semaphore(AT_ONCE)
        self._moved: dict[str, asyncio.Event] = {}
        self._keeping: dict[str, asyncio.Task[None]] = {}

    def start(self) -> None:
        """Take up what an earlier agent process started."""
        for sandbox_id in list(self._node.memory.sandboxes):
            self.changed(sandbox_id)

    def changed(self, sandbox_id: str) -> None:
        """Look at it again: it began, runs, was replaced, or is gone."""
        if sandbox_id in self._moved:
            self._moved[sandbox_id].set()
        elif self._entitled(sandbox_id) is not None:
            self._moved[sandbox_id] = asyncio.Event()
            task = asyncio.create_task(self._keep(sandbox_id), name=f"identity {sandbox_id}")
            self._keeping[sandbox_id] = task
            task.add_done_callback(lambda _: self._forget(sandbox_id))

    def _forget(self, sandbox_id: str) -> None:
        self._moved.pop(sandbox_id, None)
        self._keeping.pop(sandbox_id, None)

    async def close(self) -> None:
        """Stop renewing; what is inside stays until it expires."""
        tasks = list(self._keeping.values())
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    def _entitled(self, sandbox_id: str) -> SandboxRecord | None:
        record = self._node.find(sandbox_id)
        return record if record is not None and record.issuer and record.condition in _ALIVE else None

    async def _keep(self, sandbox_id: str) -> None:
        while (record := self._entitled(sandbox_id)) is not None:
            try:
                async with self._asking:
                    token = await self._ask(record.project, sandbox_id)
            except Refused as refused:
                log.warning("identity.not-issued", sandbox=sandbox_id, code=refused.code, error=refused.message)
                await self._until_moved(sandbox_id, self._pause_s)
                continue
            life = (token.expires_at - token.issued_at).total_seconds()
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(life * RENEW):
                    await self._hold(sandbox_id, token.text)

    async def _hold(self, sandbox_id: str, token: str) -> None:
        """Have it inside every generation of the sandbox, until that is gone."""
        given: int | None = None
        while (record := self._entitled(sandbox_id)) is not None:
            failed = False
            if record.condition in _INSIDE and record.generation != given:
                failed = not await self._give(record, token)
                given = None if failed else record.generation
            await self._until_moved(sandbox_id, self._pause_s if failed else None)

    async def _give(self, record: SandboxRecord, token: str) -> bool:
        driver = self._node.drivers.pick(record.driver)
        try:
            if isinstance(driver, TakesIdentity):
                await driver.give_identity(self._node.handle(record), token)
        except RuntimeFault as fault:
            log.warning("identity.not-given", sandbox=record.id, code=fault.code, error=str(fault))
            return False
        return True

    async def _until_moved(self, sandbox_id: str, seconds: float | None) -> None:
        moved = self._moved[sandbox_id]
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(seconds):
                await moved.wait()
        moved.clear()
