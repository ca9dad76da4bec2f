"""The AsyncAPI 3.0 document of the bus: every command, query and event that the code's registries know.

Actions are the control plane's own (AsyncAPI describes an application): it receives commands and queries, and sends events and outcomes.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Final

from bus.usage import COLUMNS
from domain import catalogue
from domain.kernel.aggregate import ENVELOPE_FIELDS, Event
from domain.kernel.command import Command
from domain.kernel.ids import NAME_PATTERN
from domain.kernel.registry import COMMANDS, EVENTS
from domain.nodes.placement import Verdict
from domain.sandboxes.questions import PlacementExplain
from handlers.explaining import QUERIES, SEEN
from projections import trail
from projections.question import MAX_LIMIT
from projections.view import View
from projections.views import VIEWS

Json = dict[str, Any]

LOG_QUERIES: Final[Mapping[str, Sequence[str]]] = {"events": ("read", "verify"), "audit": ("list", "get"), "views": ("list", "digest")}
"""What can be asked beside the views; a test holds it against the projector's own list."""
TEXT: Final[Json] = {"type": "string"}
WHOLE: Final[Json] = {"type": "integer"}
_TYPES: Final = {str: "string", bool: "boolean", int: "number", float: "number", list: "array", dict: "object"}


def queries() -> dict[str, Sequence[str]]:
    """View → verbs."""
    return {**{view.name: view.verbs for view in VIEWS}, **LOG_QUERIES, **QUERIES}


def document() -> Json:
    """The whole document, ready for JSON."""
    catalogue.load()
    channels: Json = {"replies": {"address": None, "description": "The inbox that a request names.", "messages": {}}}
    channels |= _streams()
    operations: Json = {
        "followEvents": {"action": "send", "channel": _ref("channels", "events")},
        "publishOutcomes": {"action": "send", "channel": _ref("channels", "outcomes")},
        "followLogs": {"action": "send", "channel": _ref("channels", "logs")},
        "followUsage": {"action": "send", "channel": _ref("channels", "usage")},
    }
    messages: Json = {"Commit": _commit(), "Reply": _message("Reply", "The answer to a command.", _ref("components", "schemas", "Reply"))}
    messages["LogChunk"] = {**_message("LogChunk", "Bytes as the workload wrote them.", TEXT), "contentType": "application/octet-stream"}
    messages["Usage"] = _message("Usage", "What sandboxes of a node use: a row of numbers for each, in the order of columns.", _usage())
    schemas: Json = {"Reply": _reply(), **{name: _event_schema(event) for name, event in sorted(EVENTS.items())}}
    for name, command in sorted(COMMANDS.items()):
        _add_command(name, command, channels, operations, messages)
    views = {view.name: view for view in VIEWS}
    for name, verbs in sorted(queries().items()):
        for verb in verbs:
            _add_query(name, verb, views.get(name), channels, operations, messages)
    return {
        "asyncapi": "3.0.0",
        "info": {"title": "Strandline bus", "version": "1.0.0", "description": "What is public on the bus. Changed only by adding."},
        "defaultContentType": "application/json",
        "servers": _servers(),
        "channels": channels,
        "operations": operations,
        "components": {"messages": messages, "schemas": schemas},
    }


def _servers() -> Json:
    """Where the bus is: ``connect.json`` of an installation names URL and credentials."""
    port = {"description": "As connect.json says; `strandline up --port` fixes it."}
    return {
        "embedded": {
            "host": "127.0.0.1:{port}",
            "protocol": "nats",
            "description": "The server that `strandline up` starts. Credentials: the user JWT and key in the file that connect.json names.",
            "variables": {"port": port},
        },
        "cluster": {
            "host": "{host}:4222",
            "protocol": "nats",
            "description": "A server of a cluster (compose.yaml), by TLS with the cluster's own CA; credentials as above.",
            "variables": {"host": {"default": "nats-1", "description": "Any of its servers."}},
        },
    }


def _streams() -> Json:
    return {
        "events": _channel(
            "strand.evt.{project}.{type}.{id}", {"Commit": "Commit"}, "The log, JetStream stream EVENTS. One message is one commit."
        ),
        "outcomes": _channel(
            "strand.v1.outcome.{project}.{commandId}",
            {"Reply": "Reply"},
            "JetStream stream OUTCOME: replies to submitted commands, 7 days.",
        ),
        "logs": _channel(
            "strand.log.{project}.{sandbox}.{stream}",
            {"LogChunk": "LogChunk"},
            "JetStream stream LOGS: what a sandbox wrote, bounded by age, size and per subject; stream is stdout, stderr or runtime.",
        ),
        "usage": _channel(
            "strand.usage.{node}.{part}",
            {"Usage": "Usage"},
            "Core NATS: samples of what sandboxes use, every few seconds; at most 1000 sandboxes in one part.",
        ),
    }


def _usage() -> Json:
    row = {"type": "array", "items": {"type": ["number", "null"]}}
    columns = {"type": "array", "items": {"enum": list(COLUMNS)}}
    sandboxes = {"type": "object", "additionalProperties": row}
    return _object(boot=TEXT, at=TEXT, every_s={"type": "number"}, columns=columns, sandboxes=sandboxes)


def _add_command(name: str, command: type[Command], channels: Json, operations: Json, messages: Json) -> None:
    key = name.replace(".", "-")
    identifier = {**TEXT, "pattern": "^[A-Za-z0-9_-]{1,64}$"}
    headers = _object(**{"Strand-Command-Id": identifier, "Strand-Call-Id": identifier, "Strand-Actor": TEXT, "traceparent": TEXT})
    payload = command.model_json_schema(ref_template=f"#/components/messages/{key}/payload/$defs/{{model}}")
    messages[key] = {
        **_message(name, _first_line(command.__doc__), payload),
        "headers": headers,
        "examples": [{"payload": command.EXAMPLE}],
    }
    answer: Json = _ref("components", "schemas", "Reply")
    if command.RESULT is not None:
        place = f"#/components/messages/{key}-reply/payload/allOf/1/properties/result/$defs/{{model}}"
        result = command.RESULT.model_json_schema(mode="serialization", ref_template=place)
        answer = {"allOf": [answer, {"type": "object", "properties": {"result": result}}]}
    messages[f"{key}-reply"] = _message(f"{name} reply", f"The answer to {name}.", answer)
    channels["replies"]["messages"][f"{key}-reply"] = _ref("components", "messages", f"{key}-reply")
    for kind, said in (("cmd", "Request/reply."), ("submit", "JetStream stream SUBMIT: durable, the outcome is published.")):
        channels[f"{kind}-{key}"] = _channel(f"strand.v1.{kind}.{{project}}.{name}", {key: key}, said)
        operations[f"{kind}-{key}"] = {"action": "receive", "channel": _ref("channels", f"{kind}-{key}")}
    operations[f"cmd-{key}"]["reply"] = _replying(f"{key}-reply")


def _add_query(name: str, verb: str, view: View | None, channels: Json, operations: Json, messages: Json) -> None:
    key = f"qry-{name}-{verb}"
    shown = view.fields if view is not None else trail.FIELDS if name == "audit" else {}
    own = view.asks.get(verb) if view is not None else None
    fields = {field: _typed(value) for field, value in (own.shown if own else shown).items()}
    items = {"type": "array", "items": _object(**fields) if own or verb in {"list", "get"} else {"type": "object"}}
    if name in QUERIES:
        items["items"] = _object(**{f: {} for f in (*Verdict.model_fields, "here", *sorted(SEEN))})
    page = _object(ok={"const": True}, seq=WHOLE, items=items, next={"type": ["string", "integer", "null"]})
    messages[key] = _message(
        f"{name}.{verb}", "A question.", _question(name, verb, {f: _typed(v) for f, v in own.asked.items()} if own else fields)
    )
    messages[f"{key}-page"] = _message(f"{name}.{verb} page", "What was found, and the position it is true for.", page)
    channels[key] = _channel(f"strand.v1.qry.{{project}}.{name}.{verb}", {key: key}, "Request/reply.")
    channels["replies"]["messages"][f"{key}-page"] = _ref("components", "messages", f"{key}-page")
    operations[key] = {"action": "receive", "channel": _ref("channels", key), "reply": _replying(f"{key}-page")}


def _question(name: str, verb: str, fields: Json) -> Json:
    """The body of a query; filters of a list are the scalar fields of its items."""
    limit = {"type": "integer", "minimum": 1, "maximum": MAX_LIMIT}
    if name == "events":
        read = {"after": WHOLE, "until": WHOLE, "limit": limit, "type": TEXT} if verb == "read" else {}
        return _object(**read, id=TEXT, min_seq=WHOLE)
    if name in QUERIES:
        return PlacementExplain.model_json_schema()
    body: Json = {"min_seq": WHOLE, "as_of": {"type": ["integer", "string"]}}
    if name == "views":
        body |= {"view": TEXT} if verb == "digest" else {}
    elif verb == "get":
        body["id"] = TEXT
    elif verb != "summary":
        body |= {"event": TEXT} if name == "audit" else {}
        body |= {"limit": limit, "cursor": TEXT, **{f: t for f, t in fields.items() if t.get("type") not in {"array", "object"}}}
    return _object(**body)


def _event_schema(event: type[Event]) -> Json:
    schema = event.model_json_schema(ref_template=f"#/components/schemas/{event.TOPIC}/$defs/{{model}}")
    properties = {k: v for k, v in schema.get("properties", {}).items() if k not in ENVELOPE_FIELDS}
    required = [k for k in schema.get("required", []) if k not in ENVELOPE_FIELDS]
    shown: Json = {"type": "object", "x-schema": event.class_version, "properties": properties, "required": required}
    if "$defs" in schema:
        shown["$defs"] = schema["$defs"]
    if event.__doc__ and event.__doc__ != Event.__doc__ and "The first event of an aggregate" not in event.__doc__:
        shown["description"] = " ".join(event.__doc__.split())
    return shown


def _commit() -> Json:
    event = _object(type={"enum": sorted(EVENTS)}, schema=WHOLE, version=WHOLE, data={"type": "object"})
    event["description"] = "`data` is the schema of components.schemas that `type` names."
    fields = dict.fromkeys(("commit", "command", "digest", "cause", "actor", "project", "type", "id", "trace", "prev", "hash"), TEXT)
    payload = _object(**fields, time={**TEXT, "format": "date-time"}, events={"type": "array", "items": event}, reply={"type": "object"})
    return _message("Commit", "The events that one command caused in one aggregate.", payload)


def _reply() -> Json:
    error = _object(code=TEXT, message=TEXT, retryable={"type": "boolean"}, details={"type": "object"})
    ok = {"type": "boolean"}
    return _object(ok=ok, command_id=TEXT, id={"type": ["string", "null"]}, seq=WHOLE, result={"type": "object"}, error=error)


def _channel(address: str, messages: Mapping[str, str], description: str) -> Json:
    names = [part[1:-1] for part in address.split(".") if part.startswith("{")]
    about = {"project": {"description": f"Whose things; matches {NAME_PATTERN}."}}
    return {
        "address": address,
        "description": description,
        "parameters": {name: about.get(name, {}) for name in names},
        "messages": {name: _ref("components", "messages", message) for name, message in messages.items()},
    }


def _replying(message: str) -> Json:
    return {"channel": _ref("channels", "replies"), "messages": [_ref("channels", "replies", "messages", message)]}


def _message(name: str, summary: str, payload: Json) -> Json:
    return {"name": name, "summary": summary, "payload": payload}


def _object(**properties: Any) -> Json:
    return {"type": "object", "properties": properties}


def _typed(value: Any) -> Json:
    """The type of a view's field by its first value; one that begins as null can become anything."""
    return {} if value is None else {"type": _TYPES[type(value)]}


def _first_line(doc: str | None) -> str:
    return (doc or "").strip().partition("\n")[0]


def _ref(*path: str) -> Json:
    return {"$ref": "#/" + "/".join(path)}
