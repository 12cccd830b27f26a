"""Landed rows as traces show them."""

from collections.abc import Sequence
from datetime import datetime
from decimal import Decimal

from core.contracts.lookup import Row
from core.decimals import canonical
from services.billing.live import TOPIC
from services.billing.trace.documents import TracedEvent
from services.common.errors import invalid


def event(row: Row) -> TracedEvent:
    return {
        "object": "usage_event",
        "place": place(row),
        "source": row.source,
        "id": row.id,
        "kind": row.kind,
        "time": None if row.time is None else micro(row.time),
        "received": micro(row.received),
        "meter": row.meter,
        "quantity": None if row.quantity is None else canonical(Decimal(row.quantity)),
        "dimensions": row.dimensions,
        "subject": row.subject,
        "coordinates": {
            "topic": TOPIC,
            "topic_id": row.topic_id,
            "partition": row.partition,
            "offset": row.offset,
            "slice": row.slice,
            "generation": row.generation,
            "object": row.object,
        },
    }


def place(row: Row) -> str:
    """`slice:partition:offset`, in the order of which rows landed."""
    return f"{row.slice}:{row.partition}:{row.offset}"


def place_of(cursor: str) -> tuple[int, int, int] | None:
    """None for an empty cursor. Raises: Problem 422."""
    if not cursor:
        return None
    parts: Sequence[str] = cursor.split(":")
    if len(parts) != 3 or not all(part.isascii() and part.isdigit() and len(part) < 16 for part in parts):
        raise invalid("/query/after", "no place of an event; take `last_id` of the page before")
    return int(parts[0]), int(parts[1]), int(parts[2])


def micro(at: datetime) -> str:
    """To the microsecond, as it landed."""
    return at.isoformat(timespec="microseconds").replace("+00:00", "Z")
