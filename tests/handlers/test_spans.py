"""Spans: one trace from a command over orders and reports to the views that show it, and none unless somebody wants them."""

from __future__ import annotations

import sys

import pytest
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
from opentelemetry.trace import StatusCode, format_span_id, format_trace_id
from support.waiting import eventually

from bus.tracing import ENDPOINT, Tracing
from domain.kernel.errors import Refused
from domain.nodes.orders import Verb
from projections.buslog import BusLog
from projections.memory import MemoryStore
from projections.projector import Projector
from projections.views import VIEWS

pytestmark = pytest.mark.quick

TRACE, CALLER = "0af7651916cd43dd8448eb211c80319c", "b7ad6b7169203331"


@pytest.fixture
def exporter() -> InMemorySpanExporter:
    return InMemorySpanExporter()


@pytest.fixture
def spans(exporter):
    made = Tracing("test", SimpleSpanProcessor(exporter))
    yield made
    made.close()


def test_a_command_is_followed_to_its_report_and_into_the_views(at, exporter, spans) -> None:
    async def test(place) -> None:
        async with Projector(place.nc, MemoryStore(), BusLog(place.nc), VIEWS, spans) as projector:
            await projector.caught_up()
            template = await place.template()
            body = {"template": template, "wait_s": 20}
            made = await place.do("sandbox.create", body, trace=f"00-{TRACE}-{CALLER}-01")
            found = await eventually(lambda: whole(made["sandbox_id"]))
            assert {format_trace_id(span.context.trace_id) for span in found.values()} == {TRACE}
            parents = {name: format_span_id(span.parent.span_id) for name, span in found.items()}
            command, report = (format_span_id(found[name].context.span_id) for name in ("sandbox.create", "report sandbox-provision done"))
            assert parents["sandbox.create"] == CALLER
            assert parents["report sandbox-provision done"] == command, "the order carried it"
            assert parents["sandbox visible"] in {command, report}
            assert found["sandbox.create"].attributes["strandline.project"] == "default"
            [order] = place.node.did(Verb.SANDBOX_PROVISION)
            assert order.trace == f"00-{TRACE}-{command}-01"
            others = {span.context.trace_id for span in exporter.get_finished_spans() if span.name == "template.create"}
            assert len(others) == 1, "a command without a trace begins one"

    def whole(sandbox: str) -> dict | None:
        of_it = [span for span in exporter.get_finished_spans() if format_trace_id(span.context.trace_id) == TRACE]
        found = {span.name: span for span in of_it}
        shown = {span.attributes.get("strandline.id") for span in of_it if span.name == "sandbox visible"}
        return found if shown == {sandbox} and {"sandbox.create", "report sandbox-provision done"} <= found.keys() else None

    at(test, spans=spans)


def test_a_refusal_is_said_in_the_span_of_its_command(at, exporter, spans) -> None:
    async def test(place) -> None:
        with pytest.raises(Refused):
            await place.do("sandbox.create", {"template": "nothing"})
        [span] = [span for span in exporter.get_finished_spans() if span.name == "sandbox.create"]
        assert (span.attributes["strandline.code"], span.status.status_code) == ("template.not-found", StatusCode.ERROR)

    at(test, spans=spans)


def test_nothing_is_exported_unless_the_environment_says_where_to(monkeypatch) -> None:
    monkeypatch.delenv(ENDPOINT, raising=False)
    assert Tracing.configured("test") is None
    monkeypatch.setenv(ENDPOINT, "http://127.0.0.1:9")
    configured = Tracing.configured("test")
    assert configured is not None
    configured.close()
    monkeypatch.setitem(sys.modules, "opentelemetry.exporter.otlp.proto.http.trace_exporter", None)
    assert Tracing.configured("test") is None, "it is not installed, which is said in the log"
