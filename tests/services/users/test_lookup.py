"""The functions that look across tenants, on real PostgreSQL: they answer although row-level security is forced."""

from collections.abc import AsyncIterator

import pytest
from sqlalchemy import text
from sqlalchemy.exc import DBAPIError

from core.database import Database, TenantRequiredError, tenant
from core.ids import new_id
from services.users import keys, store


@pytest.fixture(params=["postgres", pytest.param("postgres15", marks=pytest.mark.stack)])
async def app_database(request: pytest.FixtureRequest) -> AsyncIterator[Database]:
    """Role `app` on both versions that the platform supports."""
    database = Database(request.getfixturevalue(request.param), role="app")
    yield database
    await database.close()


async def organisation_with_key(database: Database, plan: str = "free") -> tuple[str, str, keys.NewKey]:
    """(organisation id, its slug, key)"""
    organisation_id, key = new_id("org"), keys.generate()
    slug = f"t-{key.public_id.lower()}"
    with tenant(organisation_id):
        async with database.writer() as connection:
            await store.create_organisation(connection, organisation_id, slug, "Test", plan)
            await store.insert_key(
                connection, tenant_id=organisation_id, key_id=new_id("key"), public_id=key.public_id, name="k",
                key_sha256=key.sha256, scopes=("usage:read",), created_by="usr_1", expires_at=None,
            )  # fmt: skip
    return organisation_id, slug, key


async def test_key_is_found_without_a_tenant_of_its_own(app_database: Database) -> None:
    organisation_id, _, key = await organisation_with_key(app_database, "team")
    with tenant(store.NOBODY):
        async with app_database.writer() as connection:
            proof = await store.find_key(connection, key.public_id)
            assert await store.find_key(connection, "000000000000") is None
    assert proof is not None
    assert (proof.tenant_id, proof.key_sha256, proof.plan) == (organisation_id, key.sha256, "team")
    assert proof.requests_per_minute == 6000


async def test_tables_show_nothing_where_the_functions_answer(app_database: Database) -> None:
    _, slug, _ = await organisation_with_key(app_database)
    with tenant(store.NOBODY):
        async with app_database.writer() as connection:
            assert await store.find_organisation(connection, slug, "owner") is not None
            for table in ("organisation", "membership", "person", "api_key"):
                assert (await connection.execute(text(f"select * from {table}"))).all() == []


async def test_organisations_are_found_by_slug_and_by_id(app_database: Database) -> None:
    organisation_id, slug, _ = await organisation_with_key(app_database)
    with tenant(store.NOBODY):
        async with app_database.writer() as connection:
            by_slug = await store.find_organisation(connection, slug, "owner")
            assert by_slug == await store.find_organisation(connection, organisation_id, "owner")
            assert by_slug is not None
            assert by_slug.tenant_id == organisation_id
            assert await store.find_organisation(connection, "no-such", "owner") is None


async def test_pages_go_on_where_the_last_ended(app_database: Database) -> None:
    made = [(await organisation_with_key(app_database))[0] for _ in range(3)]
    with tenant(store.NOBODY):
        async with app_database.writer() as connection:

            async def page(window: store.Window, person: str | None = None) -> list[str]:
                found = await store.page_of_organisations(connection, window, person_id=person, slug=None)
                return [one.id for one in found]

            assert [one for one in await page(store.Window(1000)) if one in made] == made
            assert await page(store.Window(2, above=made[0])) == made[1:]
            assert await page(store.Window(1, above=made[0], below=made[2])) == [made[1]]
            assert (await page(store.Window(2, below=made[2], newest_first=True))) == [made[1], made[0]]
            assert await page(store.Window(100), "usr_of_nobody") == []


async def test_look_up_functions_are_not_for_everybody(app_database: Database) -> None:
    with tenant(store.NOBODY):
        async with app_database.reader() as connection:
            granted = await connection.execute(
                text(
                    "select proname from pg_proc where prosecdef and pronamespace = 'public'::regnamespace"
                    " and (has_function_privilege('public', oid, 'execute') or proowner <> 'hr_system'::regrole"
                    " or not 'search_path=public, pg_temp' = any(proconfig))"
                )
            )
            assert granted.scalars().all() == []


async def test_an_organisation_cannot_be_made_from_inside_another(app_database: Database) -> None:
    inside, _, _ = await organisation_with_key(app_database)
    with tenant(inside), pytest.raises(DBAPIError, match="row-level security"):
        async with app_database.writer() as connection:
            await store.create_organisation(connection, new_id("org"), "elsewhere", "E", "free")


async def test_slug_and_plan_errors_are_named(app_database: Database) -> None:
    _, slug, _ = await organisation_with_key(app_database)
    for arguments, error in (
        (("free", slug), store.SlugTakenError),
        (("gold", "x-gold"), store.UnknownPlanError),
    ):
        fresh = new_id("org")
        with tenant(fresh), pytest.raises(error):
            async with app_database.writer() as connection:
                await store.create_organisation(connection, fresh, arguments[1], "E", arguments[0])


async def test_role_app_without_a_tenant_does_nothing(app_database: Database) -> None:
    with pytest.raises(TenantRequiredError):
        async with app_database.reader() as connection:
            await store.find_login(connection, "a@b.c")
