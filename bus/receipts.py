"""Receipts: which command ids were used, for what, and how they were answered. They make "same id, same answer" hold across aggregates.

An id that a caller chose is claimed on the bus before its command acts, so that no control plane accepts it for anything else meanwhile or
ever after, and its answer is stored before it is given (docs/adr/0012). An id that was made up for a single call can only come again within
seconds, so memory will do; a repetition that another process gets is recognised by the aggregates.
"""

from __future__ import annotations

import asyncio
from collections import OrderedDict
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from typing import Any, Final

import orjson
import structlog
from nats.aio.client import Client

from bus import direct, subjects
from bus.endpoints import Reply, Request
from bus.replies import UnansweredError
from bus.requests import ApiError, patiently, store
from domain.kernel.errors import Refused

log = structlog.get_logger(__name__)

CACHED: Final = 16_384
"""Receipts kept in memory: repeats come soon or never."""
LARGEST: Final = 16 * 1024
"""Characters of a reply that is kept in memory; larger ones (output of ``sandbox.exec``) are fetched again from where they are."""
BACKLOG: Final = 8192
"""Refusals that are being noted on the bus at once. Beyond it they are not: their ids stay claimed for ever instead of for a day."""
PATIENCE_S: Final = 15.0
"""How long a receipt is tried to be stored; an election takes 4 to 5 s (reference/jetstream-eventstore.md §1.2)."""
REFUSED_S: Final = 86_400
"""How long a command id that was refused stays bound to its body: longer than anything that the refused command may have begun."""
EXPECT: Final = "Nats-Expected-Last-Subject-Sequence"
TTL: Final = "Nats-TTL"


@dataclass(frozen=True, slots=True)
class Receipt:
    """The digest of a command's body, and its reply; None while the command is under way, or when it was refused."""

    digest: str
    reply: dict[str, Any] | None = None
    seq: int = field(default=0, compare=False)


class Receipts:
    """What every command passes through that must not act twice."""

    def __init__(self, nc: Client) -> None:
        self._nc = nc
        self._known: OrderedDict[tuple[str, str], Receipt] = OrderedDict()
        self._writing: set[asyncio.Task[None]] = set()

    async def once(self, request: Request, digest: str, act: Callable[[], Awaitable[Reply]]) -> Reply:
        """The answer that this command got before, or that of ``act``.

        Raises what ``act`` raises, and ``Refused``: ``command.mismatch``, ``bus.unavailable``.
        """
        known = self._recent(request)
        if known is None and request.explicit:
            known = await self.claim(request.project, request.command_id, digest)
        if known is not None and known.digest != digest:
            raise Refused("command.mismatch", "this command id was used for another command or another body")
        if known is not None and known.reply is not None:
            return _reply(known.reply)
        claimed = known.seq if known else 0
        try:
            reply = await act()
        except Refused as refused:
            if request.explicit and refused.code != "bus.unavailable":  # that one may have acted all the same
                self._refused_soon(request.project, request.command_id, digest)
            raise
        said = {"result": reply.result, "id": reply.id, "seq": reply.seq}
        if not request.explicit:
            self._remember(request.project, request.command_id, Receipt(digest, said))
            return reply
        kept = await self.settle(request.project, request.command_id, Receipt(digest, said, claimed))
        return reply if kept is said else _reply(kept)

    async def get(self, project: str, command_id: str) -> Receipt | None:
        """The receipt of a command id, as the leader has it, or None. Raises ``Refused`` (``bus.unavailable``)."""
        subject = subjects.receipt(project, command_id)
        found = await direct.get(self._nc, subjects.RECEIPTS, leader=True, last_by_subj=subject, within=PATIENCE_S)
        if found is None:
            return None
        said = orjson.loads(found.data)
        return Receipt(said["digest"], said.get("reply"), found.seq)

    async def claim(self, project: str, command_id: str, digest: str) -> Receipt:
        """Bind an id to a body, for everybody; returns what it is bound to from now on. Raises ``Refused`` (``bus.unavailable``)."""

        async def once(_: float) -> Receipt:
            seq = await self._write(project, command_id, Receipt(digest), 0)
            if seq is not None:
                return Receipt(digest, None, seq)
            known = await self.get(project, command_id)
            if known is None:
                raise UnansweredError("the command id is just being claimed")
            return known

        return await patiently(once, PATIENCE_S, pause=0.01)

    async def settle(self, project: str, command_id: str, receipt: Receipt) -> dict[str, Any]:
        """Store the answer in the place of the claim at ``receipt.seq``, unless there is one; returns the one that counts.

        Raises ``Refused`` (``bus.unavailable``).
        """
        place, kept = receipt.seq, receipt.reply or {}

        async def once(_: float) -> dict[str, Any]:
            nonlocal place
            if await self._write(project, command_id, receipt, place) is not None:
                return kept
            known = await self.get(project, command_id)
            if known is not None and known.reply is not None:
                return known.reply
            place = known.seq if known else 0
            raise UnansweredError("another answer is just being stored")

        kept = await patiently(once, PATIENCE_S, pause=0.01)
        self._remember(project, command_id, Receipt(receipt.digest, kept))
        return kept

    async def flush(self) -> None:
        """Wait until every refusal is noted, or given up."""
        while self._writing:
            await asyncio.gather(*self._writing, return_exceptions=True)

    def _recent(self, request: Request) -> Receipt | None:
        known = self._known.get((request.project, request.command_id))
        if known is not None:
            self._known.move_to_end((request.project, request.command_id))
        return known

    def _remember(self, project: str, command_id: str, receipt: Receipt) -> None:
        result = (receipt.reply or {}).get("result", {})
        if sum(len(value) for value in result.values() if isinstance(value, str)) > LARGEST:
            return
        self._known[project, command_id] = receipt
        if len(self._known) > CACHED:
            self._known.popitem(last=False)

    def _refused_soon(self, project: str, command_id: str, digest: str) -> None:
        if len(self._writing) >= BACKLOG:
            log.warning("receipts.dropped", project=project, command=command_id)
            return
        task = asyncio.create_task(self._refused(project, command_id, digest))
        self._writing.add(task)
        task.add_done_callback(self._writing.discard)

    async def _refused(self, project: str, command_id: str, digest: str) -> None:
        """Let the claim end by itself, unless a repetition has been answered meanwhile."""
        try:
            known = await self.get(project, command_id)
            if known is not None and known.reply is None:
                await self._write(project, command_id, Receipt(digest), known.seq, {TTL: f"{REFUSED_S}s"})
        except (Refused, ApiError) as error:
            log.warning("receipts.lost", project=project, command=command_id, error=repr(error))

    async def _write(self, project: str, command_id: str, receipt: Receipt, expect: int, more: dict[str, str] | None = None) -> int | None:
        """Store a receipt in the place of the one at ``expect`` (0: of none); its position, or None when another one stands there."""
        data = orjson.dumps({"digest": receipt.digest, **({} if receipt.reply is None else {"reply": receipt.reply})}, default=str)
        headers = {EXPECT: str(expect), **(more or {})}
        try:
            return (await store(self._nc, subjects.receipt(project, command_id), data, headers=headers, within=PATIENCE_S)).seq
        except ApiError as error:
            if error.err_code not in _CONFLICTS:
                raise
            return None


def _reply(said: dict[str, Any]) -> Reply:
    return Reply(said["result"], said["id"], said["seq"])


_CONFLICTS: Final = frozenset({10071, 10164})
"""``wrong last sequence``, and the same with another write in flight (reference/jetstream-eventstore.md §1.1)."""
