"""Times as files write them: with or without zone, with up to nine digits of a second, or counted from an origin."""

import re
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta, timezone
from decimal import ROUND_FLOOR, Decimal
from typing import Final

from core.decimals import EXACT

_PATTERN = re.compile(
    r"(\d{4})-(\d\d)-(\d\d)[T ](\d\d):(\d\d)(?::(\d\d)(?:[.,](\d{1,9}))?)?\s?(Z|[+-]\d\d(?::?\d\d)?)?",
    re.ASCII | re.IGNORECASE,
)
_NUMBER = re.compile(r"-?\d{1,100}(?:\.\d{1,100})?(?:[eE][+-]?\d{1,2})?", re.ASCII)

UNITS: Final[Mapping[str, Decimal]] = {
    "s": Decimal(1_000_000),
    "ms": Decimal(1_000),
    "us": Decimal(1),
    "ns": Decimal("0.001"),
}
"""Microseconds in each unit that times may be counted in."""


@dataclass(frozen=True, slots=True)
class Relative:
    """Times that are numbers: so many units behind an origin, which the file itself does not say."""

    unit: str
    origin: datetime

    def parse(self, text: str) -> datetime:
        """The instant of a number such as `0`, `600` or `1022.025`; below a microsecond it is cut off.

        Raises:
            ValueError: for what is no number, or lies outside the years 1 to 9999.
        """
        if _NUMBER.fullmatch(text.strip()) is None:
            raise ValueError(f"is not a number of {self.unit} since the origin")
        micros = EXACT.multiply(Decimal(text.strip()), UNITS[self.unit]).to_integral_value(ROUND_FLOOR)
        try:
            return self.origin + timedelta(microseconds=int(micros))
        except OverflowError:
            raise ValueError("lies outside the years 1 to 9999") from None


def parse_time(text: str) -> datetime:
    """Read an ISO 8601 or RFC 3339 time; without a zone it is UTC, below a microsecond it is cut off.

    Raises:
        ValueError: for anything else. A bare number could be seconds or milliseconds, so it is refused.
    """
    match = _PATTERN.fullmatch(text.strip())
    if match is None and _NUMBER.fullmatch(text.strip()):
        raise ValueError(
            "is a bare number: say what it counts by --time-unit, and from when by --time-origin"
        )
    if match is None:
        raise ValueError("is not a time such as 2023-11-16 18:17:03.9799600 or 2026-02-18T12:00:00Z")
    year, month, day, hour, minute, second, fraction, zone = match.groups()
    micros = int((fraction or "0").ljust(6, "0")[:6])
    moment = datetime(
        int(year), int(month), int(day), int(hour), int(minute), int(second or 0), micros, tzinfo=_zone(zone)
    )
    try:
        return moment.astimezone(UTC)
    except OverflowError:
        raise ValueError("lies outside the years 1 to 9999 in UTC") from None


def _zone(text: str | None) -> timezone:
    if text is None or text.upper() == "Z":
        return UTC
    digits = text[1:].replace(":", "").ljust(4, "0")
    offset = timedelta(hours=int(digits[:2]), minutes=int(digits[2:]))
    return timezone(-offset if text[0] == "-" else offset)
