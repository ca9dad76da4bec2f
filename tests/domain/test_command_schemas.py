"""Commands at the edge: what is accepted, what is refused, and that every refusal names the field."""

from __future__ import annotations

import math
from typing import Any

import orjson
import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import TypeAdapter
from support import examples, strategies

from domain import catalogue
from domain.kernel.command import MAX_BODY, Command
from domain.kernel.errors import Invalid, Refused
from domain.kernel.registry import COMMANDS
from domain.nodes.commands import RolloutStart
from domain.sandboxes.commands import SandboxClone, SandboxCreate, SandboxExec, SandboxSetTtl
from domain.templates.commands import CompatRescan, SnapshotCreate, TemplateCreate, TemplateRedo

pytestmark = pytest.mark.quick

catalogue.load()
OURS = {name: cls for name, cls in COMMANDS.items() if cls.__module__.startswith("domain.")}
CONTRACT = {
    "template.create": "image alias cpu memory_mb disk_mb env cmd ports probe_port driver nodes egress_ca registry_user registry_secret",
    "template.commit": "sandbox_id alias",
    "template.redo": "template mode nodes",
    "template.adopt-baseline": "template",
    "template.set-compat-policy": "template policy",
    "template.delete": "template force",
    "artifact.collect": "dry_run",
    "compat.rescan": "nodes all",
    "snapshot.create": "sandbox_id name",
    "snapshot.delete": "snapshot_id",
    "sandbox.create": "template snapshot_id name cpu memory_mb env cmd ports ttl_s ttl_kind on_ttl auto_resume node labels disks egress",
    "sandbox.pause": "sandbox_id",
    "sandbox.resume": "sandbox_id",
    "sandbox.stop": "sandbox_id",
    "sandbox.delete": "sandbox_id",
    "sandbox.rollback": "sandbox_id snapshot_id",
    "sandbox.clone": "sandbox_id count",
    "sandbox.set-ttl": "sandbox_id ttl_s ttl_kind",
    "sandbox.wait-port": "sandbox_id port",
    "sandbox.exec": "sandbox_id cmd env cwd user stdin timeout_s",
    "sandbox.abandon": "sandbox_id",
    "rollout.start": "nodes all guest_image agent kernel at_once stop_after_s",
    "rollout.cancel": "rollout_id",
    "node.enroll": "node_id",
    "node.evict": "node_id",
    "node.cordon": "node_id",
    "node.uncordon": "node_id",
    "node.drain": "node_id",
    "node.sweep": "node_id dry_run",
    "disk.create": "name size_mb filesystem",
    "disk.delete": "name",
    "disk.grow": "name size_mb",
    "disk.snapshot": "name snapshot",
    "disk.delete-snapshot": "name snapshot",
    "disk.release": "name force",
    "view.rebuild": "view until",
}
"""The fields that the contract promises; more may be added, none may go."""
SB = "sb-" + "a" * 20


@pytest.mark.parametrize("name", list(CONTRACT))
def test_every_promised_field_is_there(name: str) -> None:
    assert set(CONTRACT[name].split()) <= set(OURS[name].model_fields)


@pytest.mark.parametrize("cls", list(OURS.values()), ids=list(OURS))
def test_every_command_has_an_example_that_works_and_says_what_it_does(cls: type[Command]) -> None:
    assert cls.parse(orjson.dumps(cls.EXAMPLE))
    assert cls.__doc__
    assert cls.model_json_schema()["additionalProperties"] is False


@pytest.mark.parametrize("cls", list(OURS.values()), ids=list(OURS))
def test_an_unknown_field_is_refused_by_name(cls: type[Command]) -> None:
    with pytest.raises(Invalid) as caught:
        cls.parse(orjson.dumps({**cls.EXAMPLE, "surprise": 1}))
    assert list(caught.value.details) == ["surprise"]


@pytest.mark.parametrize("cls", list(OURS.values()), ids=list(OURS))
def test_every_text_number_and_list_is_bounded(cls: type[Command]) -> None:
    unbounded = list(_unbounded(cls.model_json_schema(), cls.model_json_schema().get("$defs", {}), ""))
    assert unbounded == []


def _unbounded(schema: dict[str, Any], defs: dict[str, Any], where: str) -> Any:
    if "$ref" in schema:
        schema = defs[schema["$ref"].rsplit("/", 1)[-1]]
    for option in schema.get("anyOf", []):
        yield from _unbounded(option, defs, where)
    kind = schema.get("type")
    if kind == "string" and "enum" not in schema and "const" not in schema and not _bounded_text(schema):
        yield where
    if kind in {"number", "integer"} and not ("maximum" in schema or "exclusiveMaximum" in schema):
        yield where
    if kind == "array":
        if "maxItems" not in schema:
            yield where
        yield from _unbounded(schema["items"], defs, f"{where}[]")
    if kind == "object":
        if "additionalProperties" in schema and schema["additionalProperties"] is not False and "maxProperties" not in schema:
            yield where
        for name, inner in schema.get("properties", {}).items():
            yield from _unbounded(inner, defs, f"{where}.{name}")


def _bounded_text(schema: dict[str, Any]) -> bool:
    """A length, or a pattern that ends and repeats nothing without a limit."""
    pattern = schema.get("pattern", "*")
    return "maxLength" in schema or (pattern.endswith("$") and not {"*", "+"} & set(pattern.replace("[+-]", "")))


@pytest.mark.parametrize(
    ("cls", "body", "field"),
    [
        (SandboxCreate, {}, "snapshot_id"),
        (SandboxCreate, {"template": "base", "snapshot_id": "snap-" + "0" * 24}, "snapshot_id"),
        (SandboxCreate, {"template": "base", "cpu": 0}, "cpu"),
        (SandboxCreate, {"template": "base", "memory_mb": 1.5}, "memory_mb"),
        (SandboxCreate, {"template": "base", "memory_mb": "512"}, "memory_mb"),
        (SandboxCreate, {"template": "base", "ports": [0]}, "ports.0"),
        (SandboxCreate, {"template": "base", "ports": list(range(1, 18))}, "ports"),
        (SandboxCreate, {"template": "base", "env": {"A": "x\0"}}, "env.A"),
        (SandboxCreate, {"template": "base", "cmd": []}, "cmd"),
        (SandboxCreate, {"template": "base", "ttl_s": -2}, "ttl_s"),
        (SandboxCreate, {"template": "base", "ttl_kind": "weekly"}, "ttl_kind"),
        (SandboxCreate, {"template": "base", "node": "../n1"}, "node"),
        (SandboxCreate, {"template": "base", "auto_resume": 1}, "auto_resume"),
        (SandboxCreate, {"template": "base", "disks": [{"name": "d", "path": "relative"}]}, "disks.0.path"),
        (SandboxCreate, {"template": "base", "egress": {"internet": "no"}}, "egress.internet"),
        (SandboxCreate, {"template": "base", "wait_s": 601}, "wait_s"),
        (SandboxClone, {"sandbox_id": SB, "count": 101}, "count"),
        (SandboxClone, {"sandbox_id": "sb-1"}, "sandbox_id"),
        (SandboxSetTtl, {"sandbox_id": SB}, "ttl_s"),
        (SandboxExec, {"sandbox_id": SB, "cmd": ["ls"], "stdin": "not base64!"}, "stdin"),
        (SandboxExec, {"sandbox_id": SB, "cmd": "ls -l"}, "cmd"),
        (TemplateCreate, {"image": ""}, "image"),
        (TemplateCreate, {"image": "alpine", "alias": "Base"}, "alias"),
        (TemplateRedo, {"template": "base", "mode": "NODES"}, "nodes"),
        (TemplateRedo, {"template": "base", "mode": "ALL", "nodes": ["n1"]}, "nodes"),
        (TemplateRedo, {"template": "base", "mode": "SOME"}, "mode"),
        (CompatRescan, {}, "all"),
        (CompatRescan, {"nodes": ["n1"], "all": True}, "all"),
        (RolloutStart, {"nodes": ["n1"], "all": True, "agent": "2"}, "all"),
        (RolloutStart, {"all": True}, "kernel"),
        (RolloutStart, {"all": True, "agent": "2", "at_once": 0}, "at_once"),
        (SnapshotCreate, {"sandbox_id": SB, "name": "line\nbreak"}, "name"),
    ],
)
def test_a_bad_value_is_refused_at_its_field(cls: type[Command], body: dict[str, Any], field: str) -> None:
    with pytest.raises(Invalid) as caught:
        cls.parse(orjson.dumps(body))
    assert any(name.startswith(field) for name in caught.value.details), caught.value.details


@pytest.mark.parametrize("literal", [b"NaN", b"Infinity", b"-Infinity", b"1e999"])
def test_what_is_no_number_is_refused(literal: bytes) -> None:
    with pytest.raises(Invalid) as caught:
        SandboxCreate.parse(b'{"template":"base","cpu":' + literal + b"}")
    assert list(caught.value.details) in (["cpu"], [""])


def test_a_body_that_is_no_object_too_large_or_too_deep_is_refused() -> None:
    for body in (b"[]", b"1", b"{", b"\xff", b'"x"'):
        with pytest.raises(Invalid):
            SandboxCreate.parse(body)
    with pytest.raises(Refused) as caught:
        SandboxCreate.parse(b" " * (MAX_BODY + 1))
    assert caught.value.code == "command.too-large"
    with pytest.raises(Invalid, match="nested"):
        SandboxCreate.parse(b'{"a":' + b"[" * 50 + b"]" * 50 + b"}")


def test_absent_and_null_are_the_same_where_a_value_is_optional() -> None:
    body = {"template": "base", "ports": None, "cmd": None, "ttl_s": None, "node": None, "egress": None}
    assert SandboxCreate.parse(orjson.dumps(body)) == SandboxCreate.parse(b'{"template":"base"}')


@pytest.mark.parametrize("name", list(OURS))
@examples.times(0.4)
@given(data=st.data())
def test_any_body_is_a_command_or_is_refused(name: str, data: st.DataObject) -> None:
    cls = OURS[name]
    fields = data.draw(strategies.fields_of(cls))
    broken = data.draw(st.dictionaries(st.sampled_from([*cls.model_fields, "x"]), strategies.JSON, max_size=2))
    body = orjson.dumps({**TypeAdapter(dict[str, Any]).dump_python(fields, mode="json"), **broken})
    try:
        command = cls.parse(body)
    except Invalid:
        return
    unsaid = {name: None for name, info in cls.model_fields.items() if info.exclude}  # secrets are in no dump
    assert cls.parse(command.model_dump_json().encode()) == command.model_copy(update=unsaid)
    assert all(math.isfinite(v) for v in command.model_dump().values() if isinstance(v, float))
