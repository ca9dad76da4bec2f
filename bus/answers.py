"""The reply to a command or query as bytes, and back: ``{"ok": …}`` with a result or an error object (design.md §3)."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any, Final

import orjson

from domain.kernel.errors import Refused

COMMAND_ID_HEADER: Final = "Strand-Command-Id"
CALL_ID_HEADER: Final = "Strand-Call-Id"
"""The id of a command that its caller did not choose: made up for one call, so that sending it again is a repetition.

The answer is not kept beyond what the aggregates remember, which saves a read and a write of the disk for each command.
"""
ACTOR_HEADER: Final = "Strand-Actor"
TRACE_HEADER: Final = "traceparent"
ERROR: Final = "Nats-Service-Error"
ERROR_CODE: Final = "Nats-Service-Error-Code"

_INBOX: Final = re.compile(r"(?:_INBOX[A-Za-z0-9_-]*|_R_|_GR_)\.[!-~]+")
_STATUS: Final = {
    "command.invalid": "400",
    "command.unknown": "404",
    "query.unknown": "404",
    "command.too-large": "413",
    "reply.too-large": "413",
    "internal": "500",
}


def is_inbox(reply: str) -> bool:
    """Whether an answer may be published on ``reply``.

    A caller names the reply subject, but the answer is published with *our* rights: answering ``strand.evt.…`` would forge an event for
    the caller (reference/jetstream-eventstore.md §1.7). Only inboxes and the server's own reply mappings mean nothing to anybody else.
    """
    return _INBOX.fullmatch(reply) is not None


def success(command_id: str, identifier: str | None, seq: int, result: Mapping[str, Any]) -> bytes:
    """The reply to a command that was accepted."""
    return dump({"ok": True, "command_id": command_id, "id": identifier, "seq": seq, "result": result})


def found(seq: int, result: Mapping[str, Any]) -> bytes:
    """The reply to a query: what was found, and the log position that the view had read up to."""
    return dump({"ok": True, "seq": seq, **result})


def refusal(command_id: str | None, error: Refused) -> bytes:
    """The reply to a command or query that was not accepted."""
    body: dict[str, Any] = {"ok": False, "error": error.as_dict()}
    if command_id is not None:
        body["command_id"] = command_id
    return dump(body)


def dump(value: Any) -> bytes:
    """JSON; what JSON has no form for becomes its text, because a detail must never turn a refusal into a crash."""
    return orjson.dumps(value, default=str, option=orjson.OPT_NON_STR_KEYS | orjson.OPT_UTC_Z)


def error_headers(error: Refused) -> dict[str, str]:
    """The two headers of the nats.micro protocol (ADR-32): a number for machines, a line for people."""
    line = "".join(c if " " <= c <= "~" else "?" for c in f"{error.code}: {error.message}")
    return {ERROR: line[:256], ERROR_CODE: status(error)}


def status(error: Refused) -> str:
    """A number with the meaning that HTTP gives it."""
    if error.code in _STATUS:
        return _STATUS[error.code]
    if error.code.endswith(".not-found"):
        return "404"
    return "503" if error.retryable else "409"


def read(data: bytes) -> dict[str, Any]:
    """The reply in ``data``. Raises the ``Refused`` that it carries, or ``bus.unintelligible`` when it is no reply at all."""
    try:
        reply = orjson.loads(data)
        if reply["ok"] is True:
            return dict(reply)
        error = reply["error"]
        refused = Refused(
            str(error["code"]), str(error["message"]), retryable=error.get("retryable") is True, details=error.get("details") or {}
        )
    except (orjson.JSONDecodeError, KeyError, TypeError, ValueError) as fault:
        raise Refused("bus.unintelligible", f"the answer is not a reply of this service: {fault!r}") from None
    raise refused
