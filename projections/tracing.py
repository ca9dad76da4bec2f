"""The last span of a trace: what was asked for is visible in the views."""

from __future__ import annotations

import time
from collections.abc import Sequence

import msgspec

from bus.tracing import Tracing
from projections.engine import Message


class Traced(msgspec.Struct, frozen=True, gc=False):
    """What is wanted of a stored commit."""

    type: str
    id: str
    project: str
    trace: str | None = None


_read = msgspec.json.Decoder(Traced).decode


def shown(tracing: Tracing, messages: Sequence[Message], began_ns: int) -> None:
    """These commits were applied and saved between ``began_ns`` and now."""
    ended = time.time_ns()
    for seq, data in messages:
        commit = _read(data)
        if commit.trace is not None:
            name = f"{commit.type} visible"
            tracing.past(name, commit.trace, began_ns, ended, seq=seq, id=commit.id, project=commit.project)
