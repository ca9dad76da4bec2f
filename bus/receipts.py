"""Receipts: which command ids were answered, and how. They make "same id, same answer" hold across aggregates and for ever.

Ids that a caller chose are kept on the bus. One that was made up for a single call can only come again within seconds, so memory will do;
a repetition that another process gets is recognised by the aggregates.
"""

from __future__ import annotations

import asyncio
from collections import OrderedDict
from dataclasses import dataclass
from typing import Any, Final

import orjson
import structlog
from nats.aio.client import Client

from bus import direct, subjects
from bus.endpoints import Reply, Request
from bus.requests import ApiError, store
from domain.kernel.errors import Refused

log = structlog.get_logger(__name__)

CACHED: Final = 16_384
"""Receipts kept in memory: repeats come soon or never."""
LARGEST: Final = 16 * 1024
"""Characters of a reply that is kept in memory; larger ones (output of ``sandbox.exec``) are fetched again from where they are."""
BACKLOG: Final = 8192
"""Receipts on their way to the bus at once. Beyond it they are dropped: aggregates know their commands without them."""
EXPECT: Final = "Nats-Expected-Last-Subject-Sequence"


@dataclass(frozen=True, slots=True)
class Receipt:
    """The digest of a command's body, and its reply."""

    digest: str
    reply: dict[str, Any]


class Receipts:
    """Read before a command is carried out, written after it."""

    def __init__(self, nc: Client) -> None:
        self._nc = nc
        self._known: OrderedDict[tuple[str, str], Receipt] = OrderedDict()
        self._writing: set[asyncio.Task[None]] = set()

    async def replay(self, request: Request, digest: str) -> Reply | None:
        """The answer that this command got before, or None. Raises ``Refused``: ``command.mismatch``, ``bus.unavailable``."""
        look = self.get if request.explicit else self._recent
        known = await look(request.project, request.command_id)
        if known is None:
            return None
        if known.digest != digest:
            raise Refused("command.mismatch", "this command id was used for another command or another body")
        return Reply(known.reply["result"], known.reply["id"], known.reply["seq"])

    def keep(self, request: Request, digest: str, reply: Reply) -> None:
        """Remember the answer to a command."""
        said = {"result": reply.result, "id": reply.id, "seq": reply.seq}
        if request.explicit:
            self.put_soon(request.project, request.command_id, digest, said)
        else:
            self._remember(request.project, request.command_id, Receipt(digest, said))

    async def get(self, project: str, command_id: str) -> Receipt | None:
        """The receipt of a command, or None. Raises ``Refused`` (``bus.unavailable``)."""
        known = await self._recent(project, command_id)
        if known is not None:
            return known
        found = await direct.get(self._nc, subjects.RECEIPTS, last_by_subj=subjects.receipt(project, command_id), within=5)
        if found is None:
            return None
        receipt = Receipt(**orjson.loads(found.data))
        self._remember(project, command_id, receipt)
        return receipt

    def put_soon(self, project: str, command_id: str, digest: str, reply: dict[str, Any]) -> None:
        """Remember a reply now and store it in the background. The first receipt of a command id stays."""
        receipt = Receipt(digest, reply)
        if (project, command_id) in self._known:
            return
        self._remember(project, command_id, receipt)
        if len(self._writing) >= BACKLOG:
            log.warning("receipts.dropped", project=project, command=command_id)
            return
        task = asyncio.create_task(self._write(project, command_id, receipt))
        self._writing.add(task)
        task.add_done_callback(self._writing.discard)

    async def flush(self) -> None:
        """Wait until everything that was put is stored, or given up."""
        while self._writing:
            await asyncio.gather(*self._writing, return_exceptions=True)

    async def _recent(self, project: str, command_id: str) -> Receipt | None:
        known = self._known.get((project, command_id))
        if known is not None:
            self._known.move_to_end((project, command_id))
        return known

    def _remember(self, project: str, command_id: str, receipt: Receipt) -> None:
        if sum(len(value) for value in receipt.reply.get("result", {}).values() if isinstance(value, str)) > LARGEST:
            return
        self._known[project, command_id] = receipt
        if len(self._known) > CACHED:
            self._known.popitem(last=False)

    async def _write(self, project: str, command_id: str, receipt: Receipt) -> None:
        data = orjson.dumps({"digest": receipt.digest, "reply": receipt.reply}, default=str)
        try:
            await store(self._nc, subjects.receipt(project, command_id), data, headers={EXPECT: "0"})
        except ApiError as error:
            if error.err_code not in _CONFLICTS:  # there is one already: from an earlier sending, or another control plane
                log.warning("receipts.lost", project=project, command=command_id, error=repr(error))
        except Refused as refused:
            log.warning("receipts.lost", project=project, command=command_id, error=repr(refused))


_CONFLICTS: Final = frozenset({10071, 10164})
"""``wrong last sequence``, and the same with another write in flight (reference/jetstream-eventstore.md §1.1)."""
