"""Service periods as callers name them: a calendar month (UTC), or full hours from … to."""

import re
from datetime import UTC, datetime
from typing import Final

from core.clock import rfc3339
from core.rating import ServicePeriod, month_of

_MONTH: Final = re.compile(r"(2[01][0-9]{2})-(0[1-9]|1[0-2])", re.ASCII)


class PeriodError(ValueError):
    """No service period; the message says what to write."""


def month(text: str) -> ServicePeriod:
    """`2026-03` as a period. Raises: PeriodError."""
    found = _MONTH.fullmatch(text)
    if found is None:
        raise PeriodError(f"{text[:32]!r} is no month; write it as 2026-03")
    return month_of(datetime(int(found[1]), int(found[2]), 1, tzinfo=UTC))


def hours(start: datetime, end: datetime) -> ServicePeriod:
    """[start, end) as a period. Raises: PeriodError."""
    for name, edge in (("start", start), ("end", end)):
        if edge.tzinfo is None:
            raise PeriodError(f"`{name}` needs a zone, such as 2026-03-01T00:00:00Z")
        if not 2000 <= edge.year < 2200:
            raise PeriodError(f"`{name}` must lie between 2000 and 2200")
    start, end = start.astimezone(UTC), end.astimezone(UTC)
    if any(edge.minute or edge.second or edge.microsecond for edge in (start, end)):
        raise PeriodError("a service period begins and ends at a full hour (UTC): usage is kept by the hour")
    if end <= start:
        raise PeriodError("`end` must lie after `start`")
    return ServicePeriod(start, end)


def name(period: ServicePeriod) -> str:
    """`2026-03` for a calendar month, else both edges."""
    if period == month_of(period.start):
        return f"{period.start:%Y-%m}"
    return f"{rfc3339(period.start)}/{rfc3339(period.end)}"


def overlap(one: ServicePeriod, other: ServicePeriod) -> bool:
    return one.start < other.end and other.start < one.end
