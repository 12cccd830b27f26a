"""One text for one number, and integers that carry it exactly."""

from decimal import Decimal, Inexact

import pytest
from hypothesis import given
from hypothesis import strategies as st

from core.decimals import canonical, from_nano, nano, nano_of

quantities = st.decimals(min_value=0, max_value=10**27, places=9, allow_nan=False, allow_infinity=False)


@pytest.mark.parametrize(
    ("value", "text"),
    [
        ("2.50", "2.5"),
        ("1E+3", "1000"),
        ("1E-9", "0.000000001"),
        ("-0.0", "0"),
        ("0E-12", "0"),
        ("100", "100"),
    ],
)
def test_canonical_text(value: str, text: str) -> None:
    assert canonical(Decimal(value)) == text


@pytest.mark.parametrize("value", ["NaN", "Infinity", "-Infinity"])
def test_what_is_no_number_has_no_text(value: str) -> None:
    with pytest.raises(ValueError, match="no quantities"):
        canonical(Decimal(value))


@given(quantities)
def test_nano_units_hold_every_quantity_exactly(value: Decimal) -> None:
    text = canonical(value)
    assert Decimal(text) == value
    assert nano(text) == nano_of(value)
    assert from_nano(nano(text)) == value


def test_more_digits_than_a_quantity_has_are_refused() -> None:
    with pytest.raises(Inexact):
        nano_of(Decimal("0.0000000001"))
