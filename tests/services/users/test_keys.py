"""Keys as text: shape, checksum, and that nothing of them leaks into a repr."""

import string
from collections.abc import Callable

import pytest
from hypothesis import given
from hypothesis import strategies as st

from services.users import keys

ALPHABET = string.digits + string.ascii_letters


def test_key_names_its_row_and_proves_itself() -> None:
    key = keys.generate()
    assert keys.public_id(key.text) == key.public_id
    assert key.text.startswith(f"sk_live_{key.public_id}_")
    assert key.sha256 == keys.digest(key.text)
    assert len(key.sha256) == 32


def test_secret_has_256_bits() -> None:
    assert 62**43 > 2**256
    assert len(keys.generate().text.split("_")[3]) == 43 + 6


def test_checksum_is_crc32_in_base62() -> None:
    body = "sk_live_000000000000_" + "0" * 43
    # CRC-32 of the body is 2,267,485,953 = ((((2*62 + 29)*62 + 28)*62 + 8)*62 + 42)*62 + 5.
    text = body + "2TS8g5"
    assert keys.public_id(text) == "0" * 12


@given(st.integers(0, 69), st.sampled_from(ALPHABET))
def test_every_single_wrong_character_is_found(position: int, character: str) -> None:
    text = keys.generate().text
    wrong = text[:position] + character + text[position + 1 :]
    assert (keys.public_id(wrong) is not None) == (wrong == text)


@given(st.integers(0, 68))
def test_two_neighbours_swapped_are_found(position: int) -> None:
    text = keys.generate().text
    wrong = text[:position] + text[position + 1] + text[position] + text[position + 2 :]
    assert (keys.public_id(wrong) is not None) == (wrong == text)


@pytest.mark.parametrize(
    "change",
    [str.upper, lambda t: t + "\n", lambda t: " " + t, lambda t: t[:-1], lambda t: t + "0", lambda t: ""],
)
def test_other_shapes_are_no_keys(change: Callable[[str], str]) -> None:
    assert keys.public_id(change(keys.generate().text)) is None


@given(st.text())
def test_any_text_is_answered(text: str) -> None:
    assert keys.public_id(text) is None


def test_repr_holds_no_secret() -> None:
    key = keys.generate()
    assert key.text.split("_")[3] not in repr(key)
