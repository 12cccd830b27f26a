"""A repeated request gets its first answer and has no second effect."""

import pytest
from sqlalchemy import text

from core.database import Database, tenant
from core.ids import new_id
from core.messaging.idempotency import (
    Claim,
    IdempotencyError,
    InProgressError,
    KeyReusedError,
    Replay,
    begin,
)

SCOPE = "key_1 POST /api/v1/usage/events"


async def ask(database: Database, key: str, request: bytes = b"[1]", scope: str = SCOPE) -> Claim | Replay:
    """One request, done at once and answered with its own body."""
    async with database.writer() as connection:
        claim = await begin(connection, scope=scope, key=key, request=request)
        if isinstance(claim, Claim):
            await claim.finish(connection, 200, b"answer to " + request)
        return claim


async def test_same_request_is_answered_from_the_store(app_database: Database) -> None:
    with tenant(new_id("org")):
        assert isinstance(await ask(app_database, "k"), Claim)
        assert await ask(app_database, "k") == Replay(200, b"answer to [1]")


async def test_other_request_with_the_same_key_is_refused(app_database: Database) -> None:
    with tenant(new_id("org")):
        await ask(app_database, "k")
        with pytest.raises(KeyReusedError) as refused:
            await ask(app_database, "k", b"[2]")
    assert (refused.value.status, refused.value.code) == (422, "idempotency_key_reused")


async def test_tenant_and_scope_separate_keys(app_database: Database) -> None:
    with tenant(new_id("org")):
        await ask(app_database, "k")
        assert isinstance(await ask(app_database, "k", scope="key_2 POST /api/v1/usage/events"), Claim)
    with tenant(new_id("org")):
        assert isinstance(await ask(app_database, "k"), Claim)


async def test_running_request_is_a_conflict_and_a_failed_one_leaves_nothing(app_database: Database) -> None:
    async def fail() -> None:
        async with app_database.writer() as connection:
            await begin(connection, scope=SCOPE, key="k", request=b"[1]")
            with pytest.raises(InProgressError) as refused:
                await ask(app_database, "k")
            assert refused.value.status == 409
            raise ZeroDivisionError

    with tenant(new_id("org")):
        with pytest.raises(ZeroDivisionError):
            await fail()
        assert isinstance(await ask(app_database, "k"), Claim)


async def test_an_answer_older_than_a_day_is_forgotten(
    app_database: Database, system_database: Database
) -> None:
    org = new_id("org")
    with tenant(org):
        async with app_database.writer() as connection:
            claim = await begin(connection, scope=SCOPE, key="k", request=b"[1]")
            assert isinstance(claim, Claim)
            await connection.execute(
                text(
                    "insert into idempotency_key (tenant_id, scope, key_sha256, request_sha256, status, body, created_at) "
                    "values (:tenant, :scope, :key, :request, 200, '', now() - interval '24 hours 1 second')"
                ),
                {"tenant": org, "scope": SCOPE, "key": claim.key_sha256, "request": claim.request_sha256},
            )
        assert isinstance(await ask(app_database, "k", b"[2]"), Claim)


@pytest.mark.parametrize("key", ["", "x" * 256, "a\nb", "ключ", "\x7f"])
async def test_unusable_keys_are_refused(app_database: Database, key: str) -> None:
    with tenant(new_id("org")), pytest.raises(IdempotencyError) as refused:
        await ask(app_database, key)
    assert refused.value.status == 400
