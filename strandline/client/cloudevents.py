"""The log in CloudEvents 1.0 JSON, one object per event: what exports, webhooks and HTTP event streams speak.

Mapping: reference/user-experience.md §4.2. Extension names are lower-case alphanumerics, as the specification wants.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from bus.commit import Commit
from strandline.client.items import LogEvent

PREFIX = "io.strandline"


def event_type(name: str, schema: int) -> str:
    """``io.strandline.<event>.v<schema>``: the version is that of the data."""
    return f"{PREFIX}.{name}.v{schema}"


def to_cloudevent(event: LogEvent) -> dict[str, Any]:
    """One event. ``id`` is the commit's and the event's version in its aggregate: unique, and the same in every export."""
    schema = int(event.model_extra.get("schema", 1)) if event.model_extra else 1
    noun = event.type.split(".", 1)[0]
    return {
        "specversion": "1.0",
        "id": f"{event.commit}.{event.version}",
        "type": event_type(event.type, schema),
        "source": f"/projects/{event.project}",
        "subject": f"{noun}/{event.id}",
        "time": event.raw()["time"],
        "datacontenttype": "application/json",
        "dataschema": f"urn:strandline:event:{event.type}:{schema}",
        "sequence": str(event.version),
        "logsequence": event.seq,
        "partitionkey": event.id,
        **_optional(event),
        "data": event.data,
    }


def _optional(event: LogEvent) -> dict[str, Any]:
    trace = (event.model_extra or {}).get("trace")
    known = {
        "correlationid": event.command,
        "causationid": event.cause,
        "authid": event.actor,
        "authtype": "user" if event.actor not in {None, "system"} else "system",
        "traceparent": trace,
    }
    return {name: value for name, value in known.items() if value is not None}


def events_of(commit: Commit) -> Iterator[LogEvent]:
    """The events of one stored commit, each with what the envelope says."""
    for e in commit.events:
        yield LogEvent.model_validate(
            {
                "seq": commit.seq,
                "commit": commit.commit,
                "command": commit.command,
                "cause": commit.cause,
                "actor": commit.actor,
                "project": commit.project,
                "type": e["type"],
                "schema": e.get("schema", 1),
                "id": commit.id,
                "version": e["version"],
                "time": commit.time,
                "trace": commit.trace,
                "data": e["data"],
            }
        )


def data_of(cloudevent: Mapping[str, Any]) -> tuple[int, int]:
    """(log position, version) of an exported event, for checking that an export has no gap and no repetition."""
    return int(cloudevent["logsequence"]), int(cloudevent["sequence"])
