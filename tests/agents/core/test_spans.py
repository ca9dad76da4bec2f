"""An agent's part of a trace: the order's span lies below the one that the order carries, and its reports below that."""

from __future__ import annotations

from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
from opentelemetry.trace import format_span_id

from agents.work import Work
from bus.tracing import Tracing
from domain.nodes.orders import Verb

CALLER = "b7ad6b7169203331"
TRACE = f"00-0af7651916cd43dd8448eb211c80319c-{CALLER}-01"


def test_an_order_that_belongs_to_a_trace_is_a_span_of_it(rig, run) -> None:
    exporter = InMemorySpanExporter()
    tracing = Tracing("test", SimpleSpanProcessor(exporter))

    async def scenario() -> None:
        async with rig.life() as node:
            rig.work = Work(node, tracing)
            report = await rig.send(rig.order(Verb.SANDBOX_PROVISION, rig.provision(), trace=TRACE))
            assert report.trace.startswith(TRACE[:36])
            [span] = exporter.get_finished_spans()
            assert (span.name, format_span_id(span.parent.span_id)) == ("order sandbox-provision", CALLER)
            assert report.trace.split("-")[2] == format_span_id(span.context.span_id)
            await rig.send(rig.order(Verb.SANDBOX_DESTROY, {"sandbox_id": rig.sandbox(), "grace_s": 1}))
            assert len(exporter.get_finished_spans()) == 1, "what belongs to no trace has no span"

    run(scenario())
    tracing.close()
