"""Passwords: every byte counts, nobody costs as much as somebody, the event loop stays free."""

import asyncio

import bcrypt
import pytest

from services.users.passwords import COST, NOBODY, BusyError, Passwords, prehash

CHEAP = 4
"""bcrypt's lowest cost: these tests are about what is hashed, not how slowly."""


async def test_tail_behind_72_bytes_distinguishes() -> None:
    passwords = Passwords(cost=CHEAP)
    common = "密" * 30  # 90 bytes of UTF-8
    stored = await passwords.hash(common + "a")
    assert await passwords.matches(common + "a", stored)
    assert not await passwords.matches(common + "b", stored)
    assert not await passwords.matches(common, stored)


async def test_nul_does_not_cut_the_password() -> None:
    passwords = Passwords(cost=CHEAP)
    stored = await passwords.hash("before\x00after")
    assert not await passwords.matches("before\x00other", stored)


@pytest.mark.parametrize("password", ["", "a", "x" * 1024, "\x00", "пароль" * 100])
def test_prehash_is_always_64_bytes_that_bcrypt_takes_whole(password: str) -> None:
    assert len(prehash(password)) == 64
    assert b"\x00" not in prehash(password)


async def test_new_hashes_have_cost_12_and_no_two_are_equal() -> None:
    passwords = Passwords()
    first, second = await asyncio.gather(passwords.hash("same"), passwords.hash("same"))
    assert first.startswith("$2b$12$")
    assert first != second


def test_what_nobody_is_compared_with_has_the_cost_of_a_real_hash() -> None:
    assert NOBODY.split("$")[2] == str(COST)
    assert bcrypt.checkpw(b"", NOBODY.encode()) is False  # a whole, well-formed hash: bcrypt computes on it


async def test_nobody_never_matches_even_the_dummys_own_password() -> None:
    assert not await Passwords(cost=CHEAP).matches("", None)


async def test_nobody_takes_a_place_among_the_computations_like_anybody() -> None:
    passwords = Passwords(threads=1, queue=0)
    running = asyncio.create_task(passwords.hash("somebody"))
    await asyncio.sleep(0)
    with pytest.raises(BusyError):
        await passwords.matches("anything", None)
    await running


async def test_event_loop_runs_on_while_hashing() -> None:
    passwords = Passwords()
    ticks = 0
    task = asyncio.create_task(passwords.hash("password"))
    while not task.done():
        await asyncio.sleep(0)
        ticks += 1
    assert ticks > 10


async def test_more_callers_than_places_are_refused_and_places_come_back() -> None:
    passwords = Passwords(threads=1, queue=1, cost=CHEAP)
    outcomes = await asyncio.gather(*(passwords.hash("p") for _ in range(5)), return_exceptions=True)
    assert sum(isinstance(outcome, BusyError) for outcome in outcomes) == 3
    assert (await passwords.hash("p")).startswith("$2b$04$")


async def test_hash_is_plain_bcrypt_over_the_prehash() -> None:
    stored = await Passwords(cost=CHEAP).hash("password")
    assert bcrypt.checkpw(prehash("password"), stored.encode())
