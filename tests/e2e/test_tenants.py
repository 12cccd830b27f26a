"""Acceptance 4: what belongs to one organisation does not exist for another, on any route or table.

Routes come from the services' own reference (`/openapi.json`), tables from PostgreSQL's catalogue: a
new route or table is tried without a change here, or fails with a word on what to add.
"""

import asyncio
import itertools
import json
from collections.abc import AsyncIterator
from typing import Any, Final

import httpx2
import pytest
from sqlalchemy import text
from sqlalchemy.exc import DBAPIError

from core.database import Database, tenant
from core.ids import new_id
from services.common import openai_errors
from tests.e2e.tenants import LOOKUPS, NEUTRAL, Operation, Platform, Side, body, first, named, operations

ENDS: Final = {"POST /api/v1/auth/logout-all"}
"""Has no place to name anybody, and would end our own session."""
CAPABILITIES: Final = {"PUT /api/v1/uploads/{token}"}
"""The path is the credential, whoever sends it: tried by a test of their own."""
PLATFORM: Final = {
    "POST /api/v1/billing/invoices",
    "POST /api/v1/billing/adjustments",
    *(f"POST /api/v1/billing/price-fixes/{{price_fix}}/{what}" for what in ("approve", "reject", "apply")),
}
"""Need a scope that no role of an organisation has."""
OWNERS: Final = "/api/v1/billing/price-fixes/"
"""Below it is what only the owner of the platform sees."""
TRACE: Final = "/api/v1/usage/trace"
"""Answers to who names an event by two parameters; `tests/services/lookup` asks it for each other's events."""
SHARED: Final = {"alembic_version", "plan", "usage_watermark", "usage_publication", "usage_gate"}
"""Tables with nothing of anybody's, which role `app` reads without row-level security."""
CREATED: Final = {
    "organisation", "membership", "person", "api_key", "usage_import", "usage_cell", "invoice", "agent",
    "conversation", "message", "run", "approval", "provider", "knowledge_base", "document", "document_version",
    "usage_replacement",
}  # fmt: skip
"""Tables in which each side certainly has rows here, so that an empty answer means something."""


@pytest.fixture
async def http() -> AsyncIterator[httpx2.AsyncClient]:
    async with httpx2.AsyncClient(timeout=30) as client:
        yield client


class Tries:
    """Sends what one side tries, by each of its credentials, and keeps what went wrong."""

    def __init__(self, http: httpx2.AsyncClient, on: Platform, ours: Side, theirs: Side) -> None:
        self._http, self._on, self.ours, self.theirs = http, on, ours, theirs
        self.faults: list[str] = []
        self.sent = 0

    async def send(
        self, operation: Operation, path: str, query: dict[str, str], credential: str
    ) -> httpx2.Response:
        # What the gateway does not pass on is tried at the service itself.
        internal = operation.path.startswith("/internal/")
        base = self._on.services[operation.service] if internal else self._on.gateway
        content = body(operation, self.ours, self.theirs)
        while True:
            answer = await self._http.request(
                operation.method, base + path, params={**operation.required, **query}, json=content,
                headers={"authorization": f"Bearer {credential}", **operation.headers},
            )  # fmt: skip
            if answer.status_code != 429:
                return answer
            # All of this comes from one address, whose public requests of a minute are limited.
            await asyncio.sleep(float(answer.headers["retry-after"]))

    async def expect_404(self, operation: Operation, path: str, query: dict[str, str]) -> None:
        for kind, credential in self.ours.credentials.items():
            answer = await self.send(operation, path, query, credential)
            self._look(operation, kind, answer)
            if str(operation) in PLATFORM and code(answer) == "missing_scope":
                continue  # refused before anybody looked whose it is
            if answer.status_code != 404 or code(answer) not in {"not_found", "model_not_found"}:
                self.faults.append(f"{operation} {path} {query} by {kind}: {answer.status_code}, not 404")

    async def expect_nothing(self, operation: Operation, query: dict[str, str]) -> None:
        for kind, credential in self.ours.credentials.items():
            answer = await self.send(operation, operation.path, query, credential)
            self._look(operation, kind, answer)
            if answer.status_code >= 500:
                self.faults.append(f"{operation} by {kind}: {answer.status_code}")

    def _look(self, operation: Operation, kind: str, answer: httpx2.Response) -> None:
        self.sent += 1
        said = json.dumps(content(operation, answer, self.theirs.slug))
        self.faults += [
            f"{operation} by {kind}: the answer holds {trace}"
            for trace in self.theirs.traces
            if trace in said
        ]


def code(answer: httpx2.Response) -> str:
    """Of a problem document, or of an error as OpenAI's clients read it."""
    document = answer.json()
    return str(document.get("error", document)["code"])


def content(operation: Operation, answer: httpx2.Response, name: str) -> Any:
    """What an answer says, without what only repeats the question: the path, and `name` of a model."""
    if not answer.content:
        return {}
    found = answer.json()
    if openai_errors.concerns(operation.path) and answer.status_code == 404:
        error = found["error"]
        return {"error": {**error, "message": error["message"].replace(name, "…")}}
    return {**found, "instance": ""}


def paths(operation: Operation, ours: Side, theirs: Side) -> list[str]:
    """The path with foreign ids in it: each parameter foreign in at least one of them."""
    foreign, own = named(operation, "path", theirs), named(operation, "path", ours)
    choices = [[*foreign[name], *own[name]] for name in foreign]
    every = [dict(zip(foreign, values, strict=True)) for values in itertools.product(*choices)]
    mixed = [one for one in every if any(one[name] not in own[name] for name in one)]
    return [operation.path.format(**one) for one in mixed]


async def test_every_route_with_the_others_ids_is_a_404(
    running_platform: Platform, sides: tuple[Side, Side], http: httpx2.AsyncClient
) -> None:
    found = operations(running_platform)
    tries = Tries(http, running_platform, *sides)
    by_path = [one for one in found if one.names("path") and str(one) not in CAPABILITIES]
    by_query = [one for one in found if "tenant" in one.names("query")]
    for operation in by_path:
        for path in paths(operation, *sides):
            await tries.expect_404(operation, path, {})
    for operation in by_query:
        for name in named(operation, "query", tries.theirs)["tenant"]:
            await tries.expect_404(operation, operation.path, {"tenant": name})
    assert tries.faults == []
    assert len(by_path) >= 50
    assert len(by_query) >= 4
    assert tries.sent >= 2 * (len(by_path) + 2 * len(by_query))


async def test_only_the_platform_itself_asks_the_lookup(
    running_platform: Platform, sides: tuple[Side, Side], http: httpx2.AsyncClient
) -> None:
    tries = Tries(http, running_platform, *sides)
    asked = [one for one in operations(running_platform) if one.path.startswith("/internal/usage/")]
    assert len(asked) == len(LOOKUPS)
    for operation in asked:
        await tries.expect_404(operation, operation.path, {})
        # The positive control: nothing but the missing right was refused.
        address = running_platform.services[operation.service] + operation.path
        answer = await http.post(address, json=body(operation, *sides), headers=running_platform.as_system())
        assert answer.status_code not in {400, 401, 403, 422}, f"{operation}: {answer.text}"
        assert "No such path" not in answer.text, f"{operation}: {answer.text}"
    assert tries.faults == []


def never_was(value: str, slug: str, nobody: str) -> str:
    """A name of the same shape that nobody ever had."""
    prefix, separator, _ = value.partition("_")
    return new_id(prefix) if separator else value.replace(slug, nobody)


async def test_a_foreign_id_looks_like_one_that_never_was(
    running_platform: Platform, sides: tuple[Side, Side], http: httpx2.AsyncClient
) -> None:
    ours, theirs = sides
    tries = Tries(http, running_platform, ours, theirs)
    for operation in operations(running_platform):
        if not operation.names("path") or str(operation) in CAPABILITIES:
            continue
        named_theirs, nobody = first(operation, theirs), new_id("nobody").replace("_", "-")
        foreign = operation.path.format(**named_theirs)
        never = operation.path.format(
            **{name: never_was(value, theirs.slug, nobody) for name, value in named_theirs.items()}
        )
        answers = [await tries.send(operation, path, {}, ours.key) for path in (foreign, never)]
        bodies = [
            content(operation, answer, name)
            for answer, name in zip(answers, (theirs.slug, nobody), strict=True)
        ]
        assert answers[0].status_code == answers[1].status_code
        assert bodies[0] == bodies[1]


async def test_no_route_shows_anything_of_the_other(
    running_platform: Platform, sides: tuple[Side, Side], http: httpx2.AsyncClient
) -> None:
    """Routes without a place for an id in their path: lists, filters, and bodies that name the other."""
    tries = Tries(http, running_platform, *sides)
    others = [one for one in operations(running_platform) if not one.names("path") and str(one) not in ENDS]
    for operation in others:
        await tries.expect_nothing(operation, {})
        for name, ways in named(operation, "query", tries.theirs).items():
            for way in ways:
                await tries.expect_nothing(operation, {name: way})
        for name in NEUTRAL & set(operation.names("query")) & {"after", "before"}:
            await tries.expect_nothing(operation, {name: tries.theirs.id})
    assert tries.faults == []
    assert len(others) >= 10


async def test_the_other_still_sees_all_of_it(
    running_platform: Platform, sides: tuple[Side, Side], http: httpx2.AsyncClient
) -> None:
    """The positive control: the same questions, asked by whom they belong to, show the markers."""
    ours, theirs = sides
    tries = Tries(http, running_platform, theirs, ours)
    shown = ""
    for operation in operations(running_platform):
        if operation.method != "GET":
            continue
        path = operation.path.format(**first(operation, theirs))
        if operation.path.startswith(("/internal/", OWNERS, TRACE)):
            continue
        for query in ({}, *({name: theirs.slug} for name in named(operation, "query", theirs))):
            answer = await tries.send(operation, path, query, theirs.person_token)
            assert answer.status_code == 200, f"{operation} {query}: {answer.text}"
            shown += answer.text
    hidden = {theirs.import_id, theirs.price_fix_id}
    missing = [trace for trace in theirs.traces if trace not in shown and trace not in hidden]
    assert missing == []


async def test_what_names_the_other_in_a_body_has_no_effect(
    running_platform: Platform, sides: tuple[Side, Side], http: httpx2.AsyncClient
) -> None:
    ours, theirs = sides
    tries = Tries(http, running_platform, ours, theirs)
    by_name = {str(one): one for one in operations(running_platform)}

    events = by_name["POST /api/v1/usage/events"]
    verdicts = (await tries.send(events, events.path, {}, ours.key)).json()
    assert (verdicts["accepted"], verdicts["refused"]) == (0, 2)
    login = by_name["POST /api/v1/auth/login"]
    assert (await tries.send(login, login.path, {}, ours.key)).status_code == 404
    make = by_name["POST /api/v1/organizations"]
    assert (await tries.send(make, make.path, {}, ours.person_token)).status_code == 403

    listed = await http.get(
        f"{running_platform.gateway}/api/v1/organizations/{theirs.id}/keys",
        headers={"authorization": f"Bearer {theirs.person_token}"},
    )
    assert {one["id"]: one["status"] for one in listed.json()["data"]} == {
        theirs.key_id: "active",
        theirs.spare_key_id: "active",
    }


async def tenant_tables(database: Database) -> dict[str, str]:
    """Every table that role `app` may read, and the column that says whose a row is ('' where none does)."""
    async with database.reader() as connection:
        rows = await connection.execute(
            text(
                """
                select c.relname, c.relrowsecurity and c.relforcerowsecurity as guarded,
                       coalesce((select a.attname from pg_attribute a where a.attrelid = c.oid
                                 and a.attname = 'tenant_id'), '') as owner
                from pg_class c
                where c.relnamespace = 'public'::regnamespace and c.relkind in ('r', 'p', 'v', 'm')
                  and has_table_privilege('hr_app', c.oid, 'select')
                """
            )
        )
        found = {row.relname: row for row in rows}
    unguarded = {name for name, row in found.items() if not row.guarded} - SHARED
    assert unguarded == set(), "role app reads these without forced row-level security"
    columns = {name: str(row.owner) for name, row in found.items() if row.guarded}
    return columns | {"organisation": "id"}


async def test_a_wrong_query_under_role_app_returns_nothing(
    sides: tuple[Side, Side], app_database: Database, system_database: Database
) -> None:
    """Queries that forget the tenant, or name the wrong one, on every table."""
    ours, theirs = sides
    tables = await tenant_tables(system_database)
    assert tables.keys() >= CREATED
    for table, column in tables.items():
        everything = text(f"select r::text from {table} r")
        with tenant(ours.id):
            async with app_database.reader() as connection:
                seen = " ".join((await connection.execute(everything)).scalars())
                assert not any(trace in seen for trace in theirs.traces), table
                if column:
                    # '*' owns what is everybody's, such as list prices.
                    wrong = text(
                        f"select 1 from {table} where {column} = :them or {column} not in (:us, '*')"
                    )
                    rows = await connection.execute(wrong, {"them": theirs.id, "us": ours.id})
                    assert rows.all() == [], table
        with tenant(theirs.id):
            async with app_database.reader() as connection:
                own = " ".join((await connection.execute(everything)).scalars())
        assert table not in CREATED or any(trace in own for trace in theirs.traces), table


async def test_a_wrong_statement_under_role_app_changes_nothing(
    sides: tuple[Side, Side], app_database: Database
) -> None:
    ours, theirs = sides
    with tenant(ours.id):
        async with app_database.writer() as connection:
            for statement in (
                "update api_key set revoked_at = now() where tenant_id = :them",
                "update organisation set name = 'taken' where id = :them",
                "delete from membership where tenant_id = :them",
            ):
                done = await connection.execute(text(statement), {"them": theirs.id})
                assert done.rowcount == 0, statement
    for statement in (
        "insert into membership (tenant_id, person_id, role) select :them, person_id, 'owner' from membership",
        "update api_key set tenant_id = :them",
        "insert into usage_import (tenant_id, id, source, period_start, period_end, created_by)"
        " values (:them, 'imp_x', 'x', now(), now(), 'x')",
    ):
        with tenant(ours.id), pytest.raises(DBAPIError, match="row-level security"):
            async with app_database.writer() as connection:
                await connection.execute(text(statement), {"them": theirs.id})
