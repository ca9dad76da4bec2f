"""Documents that follow from the code say what the code says, and the AsyncAPI one is whole."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Iterator
from typing import Any

import pytest
from repo.tree import ROOT

from bus.subjects import log as log_subject
from domain.kernel.registry import COMMANDS, EVENTS
from handlers.explaining import QUERIES
from projections.queries import Queries
from projections.views import VIEWS
from scripts.asyncapi import document, queries
from scripts.generate_docs import GENERATED

pytestmark = pytest.mark.quick


def test_generated_documents_are_up_to_date() -> None:
    """In a process of its own: other tests have commands and events of their own in the registries here."""
    program = "from scripts.generate_docs import outdated; print(*outdated())"
    done = subprocess.run([sys.executable, "-c", program], cwd=ROOT, capture_output=True, text=True, check=True)
    assert not done.stdout.split(), "run: make docs"
    assert all((ROOT / "docs" / name).exists() for name in GENERATED)


def references(value: Any) -> Iterator[str]:
    match value:
        case {"$ref": str(target)}:
            yield target
        case dict():
            for part in value.values():
                yield from references(part)
        case list():
            for part in value:
                yield from references(part)


def test_every_reference_in_the_asyncapi_document_leads_somewhere() -> None:
    made = json.loads(json.dumps(document()))
    found = set(references(made))
    assert len(found) > 100
    for target in found:
        place: Any = made
        for step in target.removeprefix("#/").split("/"):
            place = place[int(step)] if isinstance(place, list) else place[step]


def test_every_command_query_and_event_is_in_the_asyncapi_document() -> None:
    made = document()
    addresses = {channel["address"] for channel in made["channels"].values()}
    assert {f"strand.v1.{kind}.{{project}}.{name}" for kind in ("cmd", "submit") for name in COMMANDS} <= addresses
    assert {f"strand.v1.qry.{{project}}.{view}.{verb}" for view, verbs in queries().items() for verb in verbs} <= addresses
    assert made["components"]["schemas"].keys() >= EVENTS.keys()


def test_the_asyncapi_document_says_where_the_bus_is_and_how_output_is_followed() -> None:
    made = document()
    assert {server["protocol"] for server in made["servers"].values()} == {"nats"}
    for server in made["servers"].values():
        assert all(f"{{{name}}}" in server["host"] for name in server["variables"])
    address = made["channels"]["logs"]["address"]
    assert address.format(project="p", sandbox="sb-1", stream="stdout") == log_subject("p", "sb-1", "stdout")


def test_the_queries_are_those_that_the_projector_and_the_control_plane_serve() -> None:
    served = Queries(None, {view.name: view for view in VIEWS}, None, None).verbs  # type: ignore[arg-type]  # only its list is asked for
    assert queries() == {**served, **QUERIES}


def test_every_example_is_valid() -> None:
    for name, command in COMMANDS.items():
        assert command.parse(json.dumps(command.EXAMPLE).encode()), name
