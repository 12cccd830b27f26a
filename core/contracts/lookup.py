"""Questions that services ask the lookup, and its answers: what landed, read from the lake.

Quantities are decimal text, times RFC 3339 to the microsecond.
"""

from datetime import datetime
from typing import Annotated, Any

import msgspec
from msgspec import Meta

Tenant = Annotated[str, Meta(min_length=1, max_length=128)]
Text = Annotated[str, Meta(min_length=1, max_length=256)]
Dimensions = Annotated[str, Meta(min_length=2, max_length=16_384)]
Generation = Annotated[int, Meta(ge=1, le=1 << 30)]
Slice = Annotated[int, Meta(ge=0, le=1 << 53)]
Instant = Annotated[datetime, Meta(tz=True)]

BUSY: str = "lookup_busy"
"""Code of a refusal: too many questions wait already."""
MOST: int = 1_000
"""Rows of one page."""


class Sums(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Counted usage of slices up to `slice`, of hours in [since, until), added up between `edges` and by month."""

    tenant: Tenant
    generation: Generation
    slice: Slice
    edges: Annotated[list[Instant], Meta(max_length=10_000)] = []
    meter: Text | None = None
    since: Instant | None = None
    until: Instant | None = None


class Selection(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Events of these dimensions (canonical JSON), of hours in [since, until)."""

    dimensions: Dimensions
    since: Instant
    until: Instant


class Rows(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Counted rows of slices (`behind`, `slice`] that one of the selections names, behind `after`."""

    tenant: Tenant
    generation: Generation
    slice: Slice
    meter: Text
    selections: Annotated[list[Selection], Meta(max_length=100_000)]
    behind: Slice = 0
    after: tuple[Slice, Slice, Slice] | None = None
    limit: Annotated[int, Meta(ge=1, le=MOST + 1)] = MOST


class Event(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    tenant: Tenant
    generation: Generation
    source: Text
    id: Text


class Record(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """What stands in `usage.records` at an offset; of the newest topic where none is named."""

    tenant: Tenant
    generation: Generation
    partition: Annotated[int, Meta(ge=0, le=1 << 20)]
    offset: Slice
    topic_id: Text | None = None


class Fates(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Records whose time lies in [since, until), of slices up to `slice`."""

    tenant: Tenant
    generation: Generation
    slice: Slice
    since: Instant
    until: Instant


class Piece(msgspec.Struct, frozen=True):
    """As `core.invoices.store.Piece`."""

    meter: str
    dimensions: dict[str, str]
    quantity: str
    events: int
    first: datetime
    last: datetime
    element: str = ""
    """Of a meter that cannot be added up."""


class Summed(msgspec.Struct, frozen=True):
    pieces: list[Piece]


class Row(msgspec.Struct, frozen=True):
    """A landed record by its coordinates: `object` is the file of `usage_events` it stands in. What could not be
    read has no source, no id and no meter."""

    topic_id: str
    partition: int
    offset: int
    slice: int
    generation: int
    object: str
    received: datetime
    tenant: str
    source: str | None
    id: str | None
    kind: str | None
    time: datetime | None
    meter: str | None
    quantity: str | None
    dimensions: dict[str, str] | None
    subject: str | None
    fate: str
    code: str | None


class Listed(msgspec.Struct, frozen=True):
    rows: list[Row]


class Place(msgspec.Struct, frozen=True):
    """Where an event was found; all null for one that is not in the lake, `landed` apart."""

    landed: int
    """The last landed slice of the generation."""
    row: Row | None = None
    voided_by: Row | None = None
    winner: Row | None = None
    """Of a duplicate or a conflict: the row that was counted."""
    voids: Row | None = None
    """Of a void: the row it takes out."""
    lost: bool = False
    """The record was gone from the topic before it landed; a person accepted that."""


class Fate(msgspec.Struct, frozen=True):
    fate: str
    code: str | None
    kind: str | None
    records: int


class Counted(msgspec.Struct, frozen=True):
    fates: list[Fate]


Answer = Summed | Listed | Place | Counted


def encode(answer: Any) -> bytes:
    return msgspec.json.encode(answer)
