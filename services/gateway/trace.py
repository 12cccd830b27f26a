"""W3C trace context on the hot path: the caller's trace goes on, with a span id of our own."""

import random
import re
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Final

from opentelemetry import context
from opentelemetry.trace import NonRecordingSpan, SpanContext, TraceFlags, set_span_in_context

_TRACEPARENT: Final = re.compile(rb"00-(?!0{32})([0-9a-f]{32})-(?!0{16})[0-9a-f]{16}-([0-9a-f]{2})")
_RANDOM: Final = random.Random()  # noqa: S311 - ids must differ, nobody has to be unable to guess them


def outgoing_traceparent(headers: list[tuple[bytes, bytes]]) -> str:
    """`traceparent` for the service and the answer. One that does not conform starts a new trace."""
    span = _RANDOM.getrandbits(64) or 1
    for name, value in headers:
        if name == b"traceparent":
            match = _TRACEPARENT.fullmatch(value)
            if match is not None:
                return f"00-{match[1].decode()}-{span:016x}-{match[2].decode()}"
    trace = _RANDOM.getrandbits(128) or 1
    # Flags: sampled, and random as trace context level 2 wants it.
    return f"00-{trace:032x}-{span:016x}-03"


class _Position(NonRecordingSpan):
    """A span that is read only where a line is logged: few requests have one."""

    def __init__(self, traceparent: str) -> None:
        self._traceparent = traceparent

    def get_span_context(self) -> SpanContext:
        _, trace, span, flags = self._traceparent.split("-")
        return SpanContext(int(trace, 16), int(span, 16), False, TraceFlags(int(flags, 16)))


@contextmanager
def logged_as(traceparent: str) -> Iterator[None]:
    """Lines that are logged meanwhile have these ids."""
    attached = context.attach(set_span_in_context(_Position(traceparent), context.Context()))
    try:
        yield
    finally:
        context.detach(attached)
