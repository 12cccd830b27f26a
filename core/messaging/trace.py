"""W3C trace context in message headers, so that one trace runs from the request to the last consumer."""

from collections.abc import Sequence

from opentelemetry import context, trace
from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator

from core.eventlog.api import Record
from core.eventlog.headers import Headers

_PROPAGATOR = TraceContextTextMapPropagator()
_NAMES = frozenset(_PROPAGATOR.fields)


def with_trace(headers: Headers) -> Headers:
    """`headers` plus `traceparent` (and `tracestate`) of the current span; a given one is kept."""
    if any(name in _NAMES for name, _ in headers):
        return headers
    carrier: dict[str, str] = {}
    _PROPAGATOR.inject(carrier)
    return (*headers, *((name, value.encode("ascii")) for name, value in carrier.items()))


def trace_context(headers: Sequence[tuple[str, bytes]]) -> context.Context:
    """The sender's context; an empty one where the headers carry none or a broken one."""
    carrier = {name: value.decode("latin-1") for name, value in headers if name in _NAMES}
    return _PROPAGATOR.extract(carrier, context=context.Context())


def consumer_span(record: Record, consumer: str) -> trace.Span:
    """A span for the work on one record, child of the sender's. The caller ends it."""
    return trace.get_tracer("headrace.messaging").start_span(
        f"process {record.topic}",
        context=trace_context(record.headers),
        kind=trace.SpanKind.CONSUMER,
        attributes={
            "messaging.operation.type": "process",
            "messaging.destination.name": record.topic,
            "messaging.destination.partition.id": str(record.partition),
            "messaging.kafka.offset": record.offset,
            "messaging.consumer.group.name": consumer,
        },
    )


def message_span(queue: str, message_id: str, headers: Headers) -> trace.Span:
    """A span for the work on one message of a queue, child of the sender's. The caller ends it."""
    return trace.get_tracer("headrace.messaging").start_span(
        f"process {queue}",
        context=trace_context(headers),
        kind=trace.SpanKind.CONSUMER,
        attributes={
            "messaging.operation.type": "process",
            "messaging.destination.name": queue,
            "messaging.message.id": message_id,
        },
    )
