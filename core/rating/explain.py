"""An amount explained: what a person or a program needs to compute it again, as decimal text.

{"model": "graduated", "quantity": "16",
 "period": {"start": "2026-03-01T00:00:00.000Z", "end": "2026-04-01T00:00:00.000Z"},
 "parts": [{"what": "tier", "after": "0", "up_to": "15", "quantity": "15", "unit_price": "10", "per": 1,
            "amount_unrounded": "150", "amount": "150.00"},
           {"what": "tier", "after": "15", "up_to": null, "quantity": "1", "unit_price": "5", "per": 1,
            "amount_unrounded": "5", "amount": "5.00"}],
 "amount_unrounded": "155", "amount": "155.00", "rounding": "line-half-up"}

Each part is quantity × unit_price / per. Parts' `amount_unrounded` add up to the line's; the line is
rounded once, and parts' `amount` are its division by largest remainder, so they add up too.
"""

from typing_extensions import TypedDict

from core.clock import rfc3339
from core.decimals import canonical
from core.prices.models import Part, What
from core.rating.lines import Line
from core.rating.money import POLICY
from core.rating.periods import ServicePeriod


class ExplanationPart(TypedDict):
    """One addend. `after` and `up_to` bound a tier; both are null for what is no tier."""

    what: What
    after: str | None
    up_to: str | None
    quantity: str
    unit_price: str
    per: int
    amount_unrounded: str
    amount: str


class ExplanationPeriod(TypedDict):
    start: str
    end: str


class Explanation(TypedDict):
    model: str
    quantity: str
    period: ExplanationPeriod | None
    parts: list[ExplanationPart]
    amount_unrounded: str
    amount: str
    rounding: str


def explain(line: Line) -> Explanation:
    """A line as plain data; see the module's example."""
    return {
        "model": line.price.model,
        "quantity": canonical(line.quantity),
        "period": None if line.period is None else _period(line.period),
        "parts": [_part(part) for part in line.parts],
        "amount_unrounded": canonical(line.amount_unrounded),
        "amount": str(line.amount),
        "rounding": POLICY,
    }


def _period(period: ServicePeriod) -> ExplanationPeriod:
    return {"start": rfc3339(period.start), "end": rfc3339(period.end)}


def _part(part: Part) -> ExplanationPart:
    return {
        "what": part.what,
        "after": None if part.after is None else canonical(part.after),
        "up_to": None if part.up_to is None else canonical(part.up_to),
        "quantity": canonical(part.quantity),
        "unit_price": canonical(part.unit_price),
        "per": part.per,
        "amount_unrounded": canonical(part.amount),
        "amount": str(part.share),
    }
