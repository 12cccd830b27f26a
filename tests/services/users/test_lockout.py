"""Guessing is slowed, and nobody is locked out by somebody else's guesses."""

import asyncio
import secrets

import pytest
from sqlalchemy import text

from core.database import Database, tenant
from services.common.errors import Problem
from services.users.lockout import SHARED, STRANGERS, Caller, Lockout
from services.users.store import NOBODY
from tests.services.users import conftest
from tests.services.users.conftest import PASSWORD, Somebody

EMAIL = "victim@example.org"


@pytest.fixture
def lockout() -> Lockout:
    """With a key of its own: no buckets of other tests."""
    return Lockout(secrets.token_bytes(32))


async def admitted(
    app: Database,
    lockout: Lockout,
    address: str = "198.51.100.1",
    *,
    device: str | None = None,
    known: bool = False,
    forgive: bool = False,
) -> bool:
    with tenant(NOBODY):
        try:
            async with app.writer() as connection:
                names = await lockout.admit(
                    connection, "password", EMAIL, Caller(address), device=device, known=known
                )
        except Problem as problem:
            if (
                problem.code != "too_many_attempts"
                or not 0 < int(problem.headers["retry-after"]) <= SHARED.seconds
            ):
                raise
            return False
        if forgive:
            async with app.writer() as connection:
                await lockout.forgive(connection, names)
    return True


async def test_a_network_has_so_many_attempts_and_others_have_their_own(
    app_database: Database, lockout: Lockout
) -> None:
    outcomes = [await admitted(app_database, lockout) for _ in range(SHARED.capacity + 3)]
    assert outcomes == [True] * SHARED.capacity + [False] * 3
    assert await admitted(app_database, lockout, "198.51.100.2")


async def test_parallel_guesses_find_no_more_room(app_database: Database, lockout: Lockout) -> None:
    outcomes = await asyncio.gather(*(admitted(app_database, lockout) for _ in range(30)))
    assert sum(outcomes) == SHARED.capacity


async def test_an_ipv6_customer_is_one_network(app_database: Database, lockout: Lockout) -> None:
    outcomes = [await admitted(app_database, lockout, f"2001:db8::{n:x}") for n in range(SHARED.capacity + 1)]
    assert outcomes[-1] is False
    assert await admitted(app_database, lockout, "2001:db8:0:1::1")


async def test_a_botnet_closes_the_account_to_strangers_only(
    app_database: Database, lockout: Lockout
) -> None:
    guesses = [await admitted(app_database, lockout, f"203.0.113.{n}") for n in range(STRANGERS.capacity + 5)]
    assert guesses == [True] * STRANGERS.capacity + [False] * 5
    assert await admitted(app_database, lockout, "198.51.100.9", known=True)
    assert await admitted(app_database, lockout, "203.0.113.1", device="dev_1")


async def test_a_known_device_has_room_where_its_network_has_none(
    app_database: Database, lockout: Lockout
) -> None:
    for _ in range(SHARED.capacity):
        await admitted(app_database, lockout)
    assert not await admitted(app_database, lockout, known=True)
    device = [await admitted(app_database, lockout, device="dev_1") for _ in range(SHARED.capacity + 1)]
    assert device == [True] * SHARED.capacity + [False]


async def test_right_attempts_cost_nothing(app_database: Database, lockout: Lockout) -> None:
    for _ in range(STRANGERS.capacity + 1):
        assert await admitted(app_database, lockout, forgive=True)


async def test_guesses_at_the_service_do_not_lock_a_known_device_out(
    anybody: conftest.Caller, person: Somebody
) -> None:
    device = (await person.login(anybody))["device_token"]
    for _ in range(SHARED.capacity):
        assert (await anybody.login("wrong", person.email)).status == 401
    full = await anybody.login(PASSWORD, person.email)
    assert (full.status, full.json["code"]) == (429, "too_many_attempts")
    assert int(full.headers["retry-after"]) > 0
    assert (await anybody.login(PASSWORD, person.email, device_token=device)).status == 200
    assert (await anybody.from_network("192.0.2.5").login(PASSWORD, person.email)).status == 200


async def test_an_address_that_nobody_has_is_locked_alike(anybody: conftest.Caller, person: Somebody) -> None:
    answers = {}
    for email in (person.email, f"nobody-{person.email}"):
        caller = anybody.from_network("192.0.2.9")
        answers[email] = [(await caller.login("wrong", email)).json for _ in range(SHARED.capacity + 1)]
    known, unknown = ([one["code"] for one in listed] for listed in answers.values())
    assert known == unknown
    assert known[-1] == "too_many_attempts"


async def test_spellings_of_an_account_have_one_bucket(
    anybody: conftest.Caller, person: Somebody, system_database: Database
) -> None:
    """PostgreSQL makes an `i` of U+0130, Python an `i` with a dot of its own above: another address."""
    caller, name = anybody.from_network("192.0.2.13"), f"dizzi-{person.email}"
    async with system_database.writer() as connection:
        await connection.execute(
            text("update person set email = :email where id = :id"), {"email": name, "id": person.id}
        )
    dotted = await caller.login(PASSWORD, name.replace("i", "\u0130"))
    assert (dotted.status, dotted.json["code"]) == (401, "wrong_credentials")
    for _ in range(SHARED.capacity // 2):
        assert (await caller.login("wrong", name)).status == 401
        assert (await caller.login("wrong", name.upper())).status == 401
    assert (await caller.login(PASSWORD, name.title())).status == 429


async def test_a_device_of_somebody_else_is_no_proof(anybody: conftest.Caller, person: Somebody) -> None:
    caller = anybody.from_network("192.0.2.11")
    theirs = (await anybody.login()).json["device_token"]
    for _ in range(SHARED.capacity):
        await caller.login("wrong", person.email)
    assert (await caller.login(PASSWORD, person.email, device_token=theirs)).status == 429
