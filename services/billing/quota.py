"""`GET /api/v1/usage`: published cells plus the tail behind them, as one number."""

from collections.abc import AsyncIterator, Iterable, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from decimal import Decimal
from typing import Final, Literal

from sqlalchemy.ext.asyncio import AsyncConnection

from core.aggregation import element_value
from core.clock import rfc3339
from core.contracts.usage import dimensions_text
from core.database import Database, tenant
from core.decimals import canonical, from_nano, nano_of
from core.meters import METERS, is_summable
from services.billing import documents, store
from services.billing.live import LiveUsage, Published, StaleCellsError, View
from services.billing.store import MAX_CELLS, Behind, CellRow, Standing
from services.billing.tail import Cell, Dimensions
from services.common.errors import invalid

Grain = Literal["total", "hour", "day"]
ATTEMPTS: Final = 5
_HOUR: Final = timedelta(hours=1)
_DAY: Final = timedelta(days=1)
_MICROSECOND: Final = timedelta(microseconds=1)


@dataclass(frozen=True, slots=True)
class Question:
    """Which usage: whole hours (days for grain `day`) of [since, until)."""

    tenant: str
    grain: Grain
    since: datetime | None
    until: datetime | None
    meter: str | None

    @property
    def published_grain(self) -> store.Grain:
        """Days are enough for a sum, unless it begins or ends inside one."""
        if self.grain != "total":
            return self.grain
        inside = any(edge is not None and edge != floor(edge, _DAY) for edge in (self.since, self.until))
        return "hour" if inside else "day"

    def period_of(self, hour: int) -> datetime | None:
        """Start of the answer's cell that this hour belongs to; None where everything is one sum."""
        if self.grain == "total":
            return None
        start = datetime.fromtimestamp(hour, UTC)
        return start if self.grain == "hour" else floor(start, _DAY)

    def contains(self, cell: Cell) -> bool:
        meter, hour, _, _ = cell.key
        start = datetime.fromtimestamp(hour, UTC)
        return (
            (self.meter is None or self.meter == meter)
            and (self.since is None or start >= self.since)
            and (self.until is None or start < self.until)
        )


_Sums = dict[tuple[datetime | None, str, Dimensions], list[int]]


class Quota:
    def __init__(self, app: Database, live: LiveUsage) -> None:
        self._app, self._live = app, live

    async def answer(self, question: Question) -> documents.Usage:
        """The document of `GET /api/v1/usage`.

        Raises:
            Problem: 422 `too_many_cells`.
        """
        rows, standing, published, view = await self._read(question)
        sums: _Sums = {}
        for row in [*rows, *standing.cells]:
            key = (row.period_start, row.meter, tuple(sorted(row.dimensions.items())))
            _add(sums, key, nano_of(row.quantity), row.events)
        for cell in view.cells if view is not None else ():
            meter, hour, dimensions, element = cell.key
            if not element and question.contains(cell):
                total = question.grain == "total"
                _add(
                    sums,
                    (question.period_of(hour), meter, () if total else dimensions),
                    cell.nano,
                    cell.events,
                )
        if max(len(sums), len(standing.periods)) > MAX_CELLS:
            raise invalid(
                "",
                f"the answer has more than {MAX_CELLS} cells; ask for a shorter time, one meter or days",
                code="too_many_cells",
            )
        return {
            "object": "usage",
            "tenant": question.tenant,
            "grain": question.grain,
            "from": None if question.since is None else rfc3339(question.since),
            "to": None if question.until is None else rfc3339(question.until),
            "quantities": _by_meter(sums, standing.whole),
            "periods": _by_period(sums, standing.periods),
            "data": [_document(key, sums[key], question.grain) for key in sorted(sums, key=_order)],
            "live": view is not None and view.live,
            "lake_version": published.lake_version,
            "as_of": _as_of(published, view),
        }

    async def _read(self, question: Question) -> tuple[list[CellRow], Standing, Published, View | None]:
        """Cells and the tail that begins exactly where they end. What cannot be added up has the tail in it
        already."""
        for attempt in range(ATTEMPTS):
            # A replica may lag behind what the tail has already let go: then ask the primary.
            async with self._connection(question, primary=attempt > 0) as connection:
                rows, published = await store.cells(
                    connection,
                    question.published_grain,
                    since=question.since,
                    until=question.until,
                    meter=question.meter,
                    summed=question.grain == "total",
                )
                try:
                    view = await self._live.view(published, question.tenant)
                except StaleCellsError:
                    continue
                standing, reflected = await _elements(connection, question, published, view)
            if reflected == published:
                return rows, standing, published, view
        async with self._connection(question, primary=True) as connection:
            standing, _ = await _elements(connection, question, published, None)
        return rows, standing, published, None

    @asynccontextmanager
    async def _connection(self, question: Question, *, primary: bool) -> AsyncIterator[AsyncConnection]:
        with tenant(question.tenant):
            async with self._app.writer() if primary else self._app.reader() as connection:
                yield connection


async def _elements(
    connection: AsyncConnection, question: Question, published: Published, view: View | None
) -> tuple[Standing, Published]:
    if question.meter is not None and is_summable(question.meter):
        return Standing([], [], {}), published
    behind = [_behind(cell) for cell in (() if view is None else view.cells) if question.contains(cell)]
    return await store.elements(
        connection,
        question.grain,
        since=question.since,
        until=question.until,
        meter=question.meter,
        behind=[one for one in behind if one.element and one.events],
    )


def question(
    tenant_id: str, grain: Grain, since: datetime | None, until: datetime | None, meter: str | None
) -> Question:
    """Times are widened to whole hours (days for grain `day`): usage is not kept any finer.

    Raises:
        Problem: 422 for an unknown meter, times without zone, or an end that is not after the start.
    """
    step = _DAY if grain == "day" else _HOUR
    if meter is not None and meter not in METERS:
        raise invalid("/meter", "not a registered meter; see GET /api/v1/meters", code="unknown_meter")
    for name, edge in (("from", since), ("to", until)):
        if edge is not None and edge.tzinfo is None:
            raise invalid(f"/{name}", "give the time with its zone, such as 2026-01-01T00:00:00Z")
    try:
        start = None if since is None else floor(since, step)
        end = None if until is None else floor(until + step - _MICROSECOND, step)
    except OverflowError:
        raise invalid("/from", "the time is outside what the platform keeps") from None
    if start is not None and end is not None and end <= start:
        raise invalid("/to", "`to` must lie after `from`")
    return Question(tenant_id, grain, start, end, meter)


def floor(instant: datetime, step: timedelta) -> datetime:
    """Start of the step (hour or day, UTC) that the instant lies in."""
    epoch = datetime(1970, 1, 1, tzinfo=UTC)
    return epoch + (instant - epoch) // step * step


def _add(sums: _Sums, key: tuple[datetime | None, str, Dimensions], nano: int, events: int) -> None:
    entry = sums.setdefault(key, [0, 0])
    entry[0] += nano
    entry[1] += events


def _behind(cell: Cell) -> Behind:
    meter, hour, dimensions, element = cell.key
    # The quantity of a void is negative; what the element is worth is not.
    value = element_value(METERS[meter].aggregation, element, from_nano(abs(cell.nano))) if element else None
    return Behind(
        meter, datetime.fromtimestamp(hour, UTC), dimensions_text(dict(dimensions)), element, value or Decimal(0),
        cell.events,
    )  # fmt: skip


def _by_meter(sums: _Sums, whole: dict[str, Decimal]) -> dict[str, str]:
    """Each meter over all cells: added up, or as `whole` has it where it cannot be."""
    totals: dict[str, int] = {}
    for (_, meter, _), (nano, _) in sums.items():
        if is_summable(meter):
            totals[meter] = totals.get(meter, 0) + nano
    values = {meter: from_nano(units) for meter, units in totals.items()} | whole
    return {meter: canonical(values[meter]) for meter in sorted(values)}


def _by_period(sums: _Sums, standing: Iterable[CellRow]) -> list[documents.UsagePeriod]:
    """Each meter in each period, over all dimensions; nothing where everything is one sum."""
    added: dict[tuple[datetime, str], int] = {}
    for (period, meter, _), (nano, _) in sums.items():
        if period is not None and is_summable(meter):
            added[period, meter] = added.get((period, meter), 0) + nano
    values = {key: from_nano(units) for key, units in added.items()}
    values |= {
        (row.period_start, row.meter): row.quantity for row in standing if row.period_start is not None
    }
    return [
        {"period_start": rfc3339(period), "meter": meter, "quantity": canonical(values[period, meter])}
        for period, meter in sorted(values)
    ]


def _order(key: tuple[datetime | None, str, Dimensions]) -> tuple[str, str, Dimensions]:
    period, meter, dimensions = key
    return ("" if period is None else period.isoformat(), meter, dimensions)


def _document(
    key: tuple[datetime | None, str, Dimensions], entry: Iterable[int], grain: Grain
) -> documents.UsageCell:
    period, meter, dimensions = key
    nano, events = entry
    known = METERS.get(meter)
    document: documents.UsageCell = {
        "meter": meter,
        "unit": known.unit if known is not None else None,
        "quantity": canonical(from_nano(nano)),
        "events": events,
    }
    if period is not None:
        end = period + (_DAY if grain == "day" else _HOUR)
        document["period_start"], document["period_end"] = rfc3339(period), rfc3339(end)
        document["dimensions"] = dict(dimensions)
    return document


def _as_of(published: Published, view: View | None) -> documents.AsOf:
    """The next offset of each partition: usage in front of it is in the answer."""
    if view is not None:
        return {"topic_id": view.topic_id, "offsets": _offsets(view.offsets)}
    if len(published.offsets) == 1:
        ((topic_id, offsets),) = published.offsets.items()
        return {"topic_id": topic_id, "offsets": _offsets(offsets)}
    return {"topic_id": None, "offsets": {}}


def _offsets(offsets: Mapping[int, int]) -> dict[str, int]:
    return {str(partition): offsets[partition] for partition in sorted(offsets)}
