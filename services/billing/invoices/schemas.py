"""Bodies that these routes read."""

from datetime import datetime
from typing import Annotated, Final

import msgspec
from msgspec import Meta

from core.invoices.periods import PeriodError, hours, month
from core.rating import ServicePeriod
from services.common.errors import invalid

ALL: Final = "all"


class ServicePeriodNamed(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """A calendar month (UTC), or full hours from `start` to `end`."""

    period: (
        Annotated[
            str, Meta(max_length=16, description="A month, such as 2026-03; of adjustments also `all`.")
        ]
        | None
    ) = None
    start: Annotated[datetime, Meta(tz=True)] | None = None
    end: Annotated[datetime, Meta(tz=True, description="Exclusive.")] | None = None
    dry_run: Annotated[bool, Meta(description="Show what would be issued; issue nothing.")] = False

    def named(self) -> ServicePeriod:
        """Raises: Problem 422."""
        try:
            if self.period is not None and self.start is None and self.end is None:
                return month(self.period)
            if self.period is None and self.start is not None and self.end is not None:
                return hours(self.start, self.end)
        except PeriodError as error:
            raise invalid("/period" if self.period else "/start", str(error)) from None
        raise invalid("/period", "name a month in `period`, or give both `start` and `end`")


def periods_of(body: ServicePeriodNamed) -> ServicePeriod | None:
    """None for `all`. Raises: Problem 422."""
    if body.period == ALL and body.start is None and body.end is None:
        return None
    return body.named()


def month_query(text: str) -> ServicePeriod:
    """`?period=2026-03`. Raises: Problem 422."""
    try:
        return month(text)
    except PeriodError as error:
        raise invalid("/period", str(error)) from None
