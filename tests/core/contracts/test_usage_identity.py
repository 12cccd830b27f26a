"""Identity of a usage event: what makes two events one, and what makes them differ."""

import itertools
import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from core.contracts.usage import ContractError, UsageEvent, dimensions_text, parse
from core.ids import identity, length_prefixed

GOOD: dict[str, Any] = {
    "specversion": "1.0",
    "type": "headrace.usage.v1",
    "id": "one",
    "source": "agents/eu-1",
    "time": "2026-02-18T12:00:00.000Z",
    "tenant": "org_1",
    "subject": "cus_1",
    "data": {"meter": "llm.tokens.input", "quantity": "12.5", "dimensions": {"model": "m", "region": "eu"}},
}


def event(**changes: Any) -> UsageEvent:
    changed = json.loads(json.dumps(GOOD))
    data = changes.pop("data", {})
    return parse(json.dumps({**changed, **changes, "data": {**changed["data"], **data}}).encode())


def test_time_quantity_and_subject_are_no_part_of_the_identity() -> None:
    first = event().identity
    assert len(first) == 16
    for change in ({"time": "2026-02-19T12:00:00Z"}, {"subject": "x"}, {"data": {"quantity": "1"}}):
        assert event(**change).identity == first
    for change in ({"tenant": "org_2"}, {"source": "s"}, {"id": "two"}):
        assert event(**change).identity != first


TEXT = st.text(st.sampled_from("1:ab\u00e9\U0001f600"), max_size=6)


@given(st.tuples(TEXT, TEXT, TEXT), st.tuples(TEXT, TEXT, TEXT))
def test_no_two_names_are_one_event(one: tuple[str, str, str], two: tuple[str, str, str]) -> None:
    assert (identity(*one) == identity(*two)) == (one == two)
    assert (length_prefixed(one) == length_prefixed(two)) == (one == two)


def test_parts_cannot_be_shifted() -> None:
    texts = ["", "a", "ab", "abc", "1:a"]
    names = list(itertools.product(texts, repeat=3))
    assert len({identity(*name) for name in names}) == len(names)


@given(st.dictionaries(TEXT, TEXT, max_size=4))
def test_dimensions_are_canonical(dimensions: dict[str, str]) -> None:
    backwards = dict(reversed(dimensions.items()))
    assert dimensions_text(dimensions) == dimensions_text(backwards)
    assert json.loads(dimensions_text(dimensions)) == dimensions


@pytest.mark.parametrize(
    "poison",
    [
        {"id": "a\x00"},
        {"tenant": "\x00org"},
        {"source": "\x00"},
        {"subject": "a\x00b"},
        {"data": {"dimensions": {"model": "m\x00"}}},
    ],
)
def test_what_no_text_column_can_keep_is_refused(poison: dict[str, Any]) -> None:
    with pytest.raises(ContractError) as refused:
        event(**poison)
    assert refused.value.code == "schema"
