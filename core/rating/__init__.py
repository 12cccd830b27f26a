"""Rating: usage × price book = invoice lines. Pure: nothing here reads a clock, a table or a setting."""

from core.rating.explain import Explanation, ExplanationPart, explain
from core.rating.lines import Line, MixedCurrencyError, Rated, Unpriced, Usage, rate
from core.rating.money import POLICY, allocate, minor_digits, round_amount
from core.rating.periods import ServicePeriod, month_of

__all__ = [
    "POLICY",
    "Explanation",
    "ExplanationPart",
    "Line",
    "MixedCurrencyError",
    "Rated",
    "ServicePeriod",
    "Unpriced",
    "Usage",
    "allocate",
    "explain",
    "minor_digits",
    "month_of",
    "rate",
    "round_amount",
]
