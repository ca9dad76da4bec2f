"""The AsyncAPI 3 document of the bus: every command, query and event that the code's registries know."""

from __future__ import annotations

from typing import Any

from domain import catalogue
from domain.kernel.aggregate import ENVELOPE_FIELDS, Event
from domain.kernel.command import Command
from domain.kernel.registry import COMMANDS, EVENTS
from projections.catalogue import VIEWS

TITLE = "Strandline bus"


def document() -> dict[str, Any]:
    """The whole document, ready for JSON or YAML."""
    catalogue.load()
    channels: dict[str, Any] = {}
    operations: dict[str, Any] = {}
    messages: dict[str, Any] = {"Commit": _commit(), "Reply": _reply(), "Query": _query(), "Page": _page()}
    schemas: dict[str, Any] = {}
    for name, command in sorted(COMMANDS.items()):
        _add_command(name, command, channels, operations, messages)
    for view, verbs in sorted(VIEWS.items()):
        for verb in verbs:
            _add_query(view, verb, channels, operations)
    channels["events"] = {
        "address": "strand.evt.{project}.{type}.{id}",
        "description": "The log, JetStream stream EVENTS. One message is one commit.",
        "parameters": {p: {} for p in ("project", "type", "id")},
        "messages": {"Commit": {"$ref": "#/components/messages/Commit"}},
    }
    operations["followEvents"] = {"action": "receive", "channel": {"$ref": "#/channels/events"}}
    for name, event in sorted(EVENTS.items()):
        schemas[name] = _event_schema(event)
    return {
        "asyncapi": "3.0.0",
        "info": {"title": TITLE, "version": "1", "description": "What is public on the bus; changed only by adding."},
        "defaultContentType": "application/json",
        "channels": channels,
        "operations": operations,
        "components": {"messages": messages, "schemas": schemas},
    }


def _add_command(name: str, command: type[Command], channels: dict[str, Any], operations: dict[str, Any], messages: dict[str, Any]) -> None:
    key = name.replace(".", "-")
    messages[key] = {
        "name": name,
        "summary": (command.__doc__ or "").strip().split("\n")[0],
        "headers": {
            "type": "object",
            "properties": {"Strand-Command-Id": {"type": "string", "pattern": "^[A-Za-z0-9_-]{1,64}$"}, "traceparent": {"type": "string"}},
        },
        "payload": command.model_json_schema(ref_template="#/components/messages/" + key + "/payload/$defs/{model}"),
        "examples": [{"payload": command.EXAMPLE}],
    }
    if command.RESULT is not None:
        messages[f"{key}-result"] = {
            "name": f"{name} result",
            "payload": command.RESULT.model_json_schema(ref_template="#/components/messages/" + key + "-result/payload/$defs/{model}"),
        }
    for kind, address in (("cmd", f"strand.v1.cmd.{{project}}.{name}"), ("submit", f"strand.v1.submit.{{project}}.{name}")):
        channels[f"{kind}-{key}"] = {
            "address": address,
            "parameters": {"project": {}},
            "messages": {key: {"$ref": f"#/components/messages/{key}"}},
        }
    operations[f"{key}"] = {
        "action": "send",
        "channel": {"$ref": f"#/channels/cmd-{key}"},
        "reply": {"messages": [{"$ref": "#/components/messages/Reply"}]},
    }


def _add_query(view: str, verb: str, channels: dict[str, Any], operations: dict[str, Any]) -> None:
    key = f"qry-{view}-{verb}"
    channels[key] = {
        "address": f"strand.v1.qry.{{project}}.{view}.{verb}",
        "parameters": {"project": {}},
        "messages": {"Query": {"$ref": "#/components/messages/Query"}},
    }
    operations[key] = {
        "action": "send",
        "channel": {"$ref": f"#/channels/{key}"},
        "reply": {"messages": [{"$ref": "#/components/messages/Page"}]},
    }


def _event_schema(event: type[Event]) -> dict[str, Any]:
    schema = event.model_json_schema()
    properties = {k: v for k, v in schema.get("properties", {}).items() if k not in ENVELOPE_FIELDS}
    required = [k for k in schema.get("required", []) if k not in ENVELOPE_FIELDS]
    shown: dict[str, Any] = {"type": "object", "x-schema": event.class_version, "properties": properties, "required": required}
    if "$defs" in schema:
        shown["$defs"] = schema["$defs"]
    if event.__doc__ and "A fact about one aggregate" not in event.__doc__:
        shown["description"] = event.__doc__.strip()
    return shown


def _object(**properties: Any) -> dict[str, Any]:
    return {"type": "object", "properties": properties}


def _commit() -> dict[str, Any]:
    text = {"type": "string"}
    event = _object(type=text, schema={"type": "integer"}, version={"type": "integer"}, data={"type": "object"})
    fields = dict.fromkeys(("commit", "command", "digest", "cause", "actor", "project", "type", "id", "trace", "prev", "hash"), text)
    payload = _object(**fields, time={"type": "string", "format": "date-time"}, events={"type": "array", "items": event})
    return {"name": "Commit", "summary": "The events that one command caused in one aggregate.", "payload": payload}


def _reply() -> dict[str, Any]:
    text = {"type": "string"}
    error = _object(code=text, message=text, retryable={"type": "boolean"}, details={"type": "object"})
    payload = _object(ok={"type": "boolean"}, command_id=text, id=text, seq={"type": "integer"}, result={"type": "object"}, error=error)
    return {"name": "Reply", "summary": "The answer to a command.", "payload": payload}


def _query() -> dict[str, Any]:
    payload = _object(min_seq={"type": "integer"}, as_of={"type": ["integer", "string"]}, limit={"type": "integer"}, cursor={"type": "string"})
    return {"name": "Query", "summary": "A question to a view; other fields are filters by exact match.", "payload": payload}


def _page() -> dict[str, Any]:
    items = {"type": "array", "items": {"type": "object"}}
    payload = _object(ok={"type": "boolean"}, seq={"type": "integer"}, items=items, next={"type": ["string", "null"]})
    return {"name": "Page", "summary": "What a view holds, and the position up to which it has read.", "payload": payload}
