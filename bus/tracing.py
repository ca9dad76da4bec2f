"""OpenTelemetry spans, exported when ``OTEL_EXPORTER_OTLP_ENDPOINT`` says where to; otherwise nothing of it is even imported.

The trace is the one that commands, orders, reports and commits carry already as W3C ``traceparent``: a span takes one as its parent and
gives its own to what follows from it. What belongs to no trace gets no span, except for commands: they begin one.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any, Final, Self

import structlog

from domain.kernel.errors import Refused

if TYPE_CHECKING:
    from opentelemetry.context import Context
    from opentelemetry.sdk.trace import SpanProcessor

log = structlog.get_logger(__name__)

ENDPOINT: Final = "OTEL_EXPORTER_OTLP_ENDPOINT"


class Tracing:
    """Makes spans. ``of`` for an exporter of one's own; ``configured`` for what the environment asks for."""

    def __init__(self, service: str, processor: SpanProcessor) -> None:
        from opentelemetry import trace  # noqa: PLC0415 - not there unless installed, and not loaded unless asked for
        from opentelemetry.sdk.resources import Resource  # noqa: PLC0415
        from opentelemetry.sdk.trace import TracerProvider  # noqa: PLC0415
        from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator  # noqa: PLC0415

        self._api = trace
        self._provider = TracerProvider(resource=Resource.create({"service.name": service}), shutdown_on_exit=False)
        self._provider.add_span_processor(processor)
        self._tracer = self._provider.get_tracer("strandline")
        self._w3c = TraceContextTextMapPropagator()

    @classmethod
    def configured(cls, service: str) -> Self | None:
        """None unless the environment says where spans go, and ``strandline[otel]`` is installed."""
        if not os.environ.get(ENDPOINT):
            return None
        try:
            from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter  # noqa: PLC0415
            from opentelemetry.sdk.trace.export import BatchSpanProcessor  # noqa: PLC0415
        except ImportError:
            log.warning("traces.unavailable", mend="pip install 'strandline[otel]'")
            return None
        return cls(service, BatchSpanProcessor(OTLPSpanExporter()))

    @contextlib.contextmanager
    def span(self, name: str, parent: str | None, **attributes: str) -> Iterator[str]:
        """A span over the block, below ``parent`` (a ``traceparent``), or the first one of a trace; gives its own ``traceparent``.

        What the block raises is said in it; a refusal by its code.
        """
        span = self._tracer.start_span(name, context=self._context(parent), attributes=_ours(attributes))
        try:
            yield self._traceparent(span)
        except Refused as refused:
            span.set_attribute("strandline.code", refused.code)
            span.set_status(self._api.StatusCode.ERROR, refused.message)
            raise
        except BaseException as error:
            span.set_status(self._api.StatusCode.ERROR, repr(error)[:300])
            raise
        finally:
            span.end()

    def past(self, name: str, parent: str, began_ns: int, ended_ns: int, **attributes: str | int) -> None:
        """A span of what is over. Nanoseconds since 1970."""
        span = self._tracer.start_span(name, context=self._context(parent), attributes=_ours(attributes), start_time=began_ns)
        span.end(ended_ns)

    def close(self) -> None:
        """Send what is left; may block for seconds."""
        self._provider.shutdown()

    def _context(self, parent: str | None) -> Context:
        from opentelemetry.context import Context  # noqa: PLC0415

        return self._w3c.extract({} if parent is None else {"traceparent": parent}, Context())

    def _traceparent(self, span: Any) -> str:
        carrier: dict[str, str] = {}
        self._w3c.inject(carrier, self._api.set_span_in_context(span))
        return carrier["traceparent"]


def _ours(attributes: dict[str, Any]) -> dict[str, Any]:
    return {f"strandline.{name}": value for name, value in attributes.items()}
