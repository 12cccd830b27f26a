"""A field opens in its own place, with its own key, unchanged; nowhere else."""

from dataclasses import fields, replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from core.security.fields import FieldCipher, FieldError, Place, UnknownKeyError
from core.settings import SecuritySettings

PLACE = Place("org_1", "usr_1", "person", "phone", "42")
OLD, NEW = bytes(range(32)), bytes(range(1, 33))
CIPHER = FieldCipher({1: OLD}, 1)


@given(st.binary(max_size=2000))
def test_round_trip(plain: bytes) -> None:
    stored = CIPHER.encrypt(plain, PLACE)
    assert CIPHER.decrypt(stored, PLACE) == plain
    assert len(stored) == len(plain) + 33
    assert CIPHER.encrypt(plain, PLACE) != stored


@pytest.mark.parametrize("part", [field.name for field in fields(Place)])
def test_it_does_not_open_elsewhere(part: str) -> None:
    stored = CIPHER.encrypt(b"+49 30 1234", PLACE)
    with pytest.raises(FieldError, match=r"person|other"):
        CIPHER.decrypt(stored, replace(PLACE, **{part: "other"}))


def test_parts_do_not_run_into_each_other() -> None:
    stored = CIPHER.encrypt(b"x", Place("ab", "c", "t", "f", "r"))
    with pytest.raises(FieldError):
        CIPHER.decrypt(stored, Place("a", "bc", "t", "f", "r"))


def test_every_changed_bit_is_noticed() -> None:
    stored = CIPHER.encrypt(b"secret", PLACE)
    for position in range(len(stored) * 8):
        changed = bytearray(stored)
        changed[position // 8] ^= 1 << position % 8
        with pytest.raises(FieldError):
            CIPHER.decrypt(bytes(changed), PLACE)
    for length in range(len(stored)):
        with pytest.raises(FieldError):
            CIPHER.decrypt(stored[:length], PLACE)


def test_keys_roll() -> None:
    stored = CIPHER.encrypt(b"secret", PLACE)
    both = FieldCipher({2: NEW, 1: OLD}, 2)
    assert both.decrypt(stored, PLACE) == b"secret"
    renewed = both.renew(stored, PLACE)
    assert renewed is not None
    assert both.renew(renewed, PLACE) is None
    only_new = FieldCipher({2: NEW}, 2)
    assert only_new.decrypt(renewed, PLACE) == b"secret"
    with pytest.raises(UnknownKeyError, match="version 1"):
        only_new.decrypt(stored, PLACE)
    with pytest.raises(FieldError):
        FieldCipher({1: NEW}, 1).decrypt(stored, PLACE)


def settings(field_key: str) -> SecuritySettings:
    return SecuritySettings(internal_key="0" * 64, field_key=field_key)


def test_keys_come_from_the_settings() -> None:
    cipher = FieldCipher.from_settings(settings(f"2:{NEW.hex()}, 1:{OLD.hex()}"))
    assert cipher.current == 2
    assert cipher.decrypt(CIPHER.encrypt(b"x", PLACE), PLACE) == b"x"


@pytest.mark.parametrize(
    "wrong",
    ["abc", "1:abc", f"0:{OLD.hex()}", f"1:{OLD.hex()}ff", f"1:{OLD.hex()},1:{NEW.hex()}", f"x:{OLD.hex()}"],
)
def test_unusable_settings_are_refused_without_quoting_them(wrong: str) -> None:
    with pytest.raises(ValueError, match=r"HEADRACE_FIELD_KEY|field key") as refused:
        FieldCipher.from_settings(settings(wrong))
    assert OLD.hex() not in str(refused.value)
