"""Usage that does not agree with what was counted is charged to nobody until it does."""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import text

from core.conservation import DAYS, GATE, HOURS, SUMS
from core.database import Database
from core.invoices import store
from core.invoices.archive import Archive
from core.invoices.issue import Invoices
from core.invoices.periods import month
from core.invoices.store import Landed, Piece
from core.objects import open_objects
from core.settings import DatabaseSettings, ObjectSettings
from tests.services.billing.conftest import Caller, Reply
from tests.services.billing.invoicing import INVOICES, MARCH, Book
from tests.services.billing.test_price_fixes import post, price, propose

ADJUSTMENTS = "/api/v1/billing/adjustments"
MORE = "quantity = quantity + 1"
EVENT = "events = events + 1"


@pytest.fixture
def book(
    owner: Caller, acme: Caller, system_database: Database, postgres: DatabaseSettings, topic_id: str
) -> Book:
    return Book(owner, acme, system_database, postgres, topic_id)


@asynccontextmanager
async def tampered(system: Database, tenant: str, change: str, grain: str = "hour") -> AsyncIterator[None]:
    """Cells of a tenant are wrong meanwhile."""
    for statement in (change, change.replace("+", "-")):
        async with system.writer() as connection:
            await connection.execute(
                text(f"update usage_cell set {statement} where tenant_id = :t and grain = :g"),
                {"t": tenant, "g": grain},
            )
        if statement == change:
            yield


def refused(answer: Reply, *names: str) -> None:
    assert (answer.status, answer.json["code"]) == (409, "not_conserved"), answer.json
    for name in names:
        assert name in answer.json["detail"]
    assert "headrace replay" in answer.json["detail"]


async def adjust(book: Book) -> Reply:
    return await book.owner.call(
        "POST", ADJUSTMENTS, params={"tenant": book.of.tenant}, json={"period": "all"}
    )


@pytest.mark.parametrize(
    ("change", "grain", "names"),
    [(MORE, "hour", [SUMS]), (MORE, "day", [SUMS]), (EVENT, "hour", [HOURS]), (EVENT, "day", [DAYS])],
)
async def test_a_period_is_not_closed(
    book: Book, system_database: Database, change: str, grain: str, names: list[str]
) -> None:
    await book.use("1000000")
    async with tampered(system_database, book.of.tenant, change, grain):
        refused(await book.close(**MARCH), *names)
        refused(await book.close(**MARCH, dry_run=True), *names)
        assert await book.numbers() == []
    issued = await book.close(**MARCH)
    assert (issued.status, issued.json["total"]) == (201, "2.50")
    async with tampered(system_database, book.of.tenant, change, grain):
        again = await book.close(**MARCH)
        assert (again.status, again.json["id"]) == (200, issued.json["id"]), "what is issued stays issued"


async def test_a_record_without_a_fate_is_no_matter_of_the_cells_alone(
    book: Book, system_database: Database
) -> None:
    """The cells are right; what landed says otherwise."""
    await book.use("1000000")
    async with system_database.writer() as connection:
        await connection.execute(
            text("update usage_conservation set landed = 2, counted = 2 where tenant_id = :t"),
            {"t": book.of.tenant},
        )
    refused(await book.close(**MARCH), HOURS, DAYS)


async def test_late_usage_is_not_posted(book: Book, system_database: Database) -> None:
    await book.use("1000000")
    await book.close(**MARCH)
    await book.use("2000000")
    async with tampered(system_database, book.of.tenant, MORE):
        refused(await adjust(book), SUMS)
        assert await book.numbers() == ["INV-000001"]
    ((posted,),) = ((await adjust(book)).json["data"],)
    assert posted["total"] == "5.00"


async def test_a_price_fix_is_neither_proposed_nor_posted(
    book: Book, other: Caller, system_database: Database
) -> None:
    """Nor is that of another organisation in the same fix: all of it or nothing."""
    sound = Book(book.owner, other, system_database, book.database, f"{other.tenant}-topic")
    for each in (sound, book):
        await price(system_database, each.of.tenant, "4")
        await each.use("3000000")
        assert (await each.close(**MARCH)).status == 201
        await price(system_database, each.of.tenant, "5")
    async with tampered(system_database, book.of.tenant, MORE):
        both = [sound.of.tenant, book.of.tenant]
        refused(await post(book.owner, "", tenants=both), SUMS)
        assert (await post(book.owner, "", tenants=both[:1])).status == 201
    fix = await propose([sound, book])
    assert (fix["totals"], fix["state"]) == ({"USD": "6.00"}, "proposed")
    approved = await post(book.owner, f"/{fix['id']}/approve", totals=fix["totals"])
    assert approved.status == 200, approved.json
    async with tampered(system_database, book.of.tenant, EVENT):
        refused(await post(book.owner, f"/{fix['id']}/apply", totals=fix["totals"]), HOURS)
        assert [await each.numbers() for each in (sound, book)] == [["INV-000001"]] * 2
    applied = await post(book.owner, f"/{fix['id']}/apply", totals=fix["totals"])
    assert (applied.status, applied.json["posted"]) == (200, 2), applied.json


@pytest.mark.parametrize(
    ("generation", "behind", "held_up"), [(1, 1, True), (1, 0, False), (1, -1, False), (2, -10, True)]
)
async def test_slices_that_the_gate_holds_up_hold_up_invoices(
    book: Book, system_database: Database, generation: int, behind: int, held_up: bool
) -> None:
    """Of what is published, or of tables that count no more, it says nothing."""
    published = await book.use("1000000")
    row = {"g": generation, "s": published + behind}
    async with system_database.writer() as connection:
        await connection.execute(
            text(
                "insert into usage_gate (generation, first_slice, last_slice, problems) values (:g, :s, :s, 2) "
                "on conflict (generation) do update set first_slice = :s, last_slice = :s, problems = 2"
            ),
            row,
        )
    try:
        proof = await book.of.ask("/api/v1/billing/invariants")
        assert [one["holds"] for one in proof["checks"] if one["name"] == GATE] == [not held_up]
        answer = await book.close(**MARCH)
        if held_up:
            assert (answer.status, answer.json["code"]) == (409, "not_conserved")
            assert "`usage_hourly` in Dagster" in answer.json["detail"]
    finally:
        async with system_database.writer() as connection:
            await connection.execute(text("update usage_gate set problems = 0"))
    assert (await book.close(**MARCH)).status == (201 if held_up else 200)


async def test_another_organisation_is_not_held_up(
    book: Book, other: Caller, system_database: Database
) -> None:
    sound = Book(book.owner, other, system_database, book.database, f"{other.tenant}-topic")
    for each in (book, sound):
        await each.use("1000000")
    async with tampered(system_database, book.of.tenant, MORE):
        refused(await book.close(**MARCH))
        assert (await sound.close(**MARCH)).status == 201
    assert (await sound.of.ask(INVOICES))["data"][0]["total"] == "2.50"


async def test_what_agrees_is_what_is_charged(
    book: Book,
    app_database: Database,
    system_database: Database,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Cells that were wrong when they were read and put right by a publication before they were judged."""
    await book.use("1000000")
    read, looks = store.usage, list[Landed | None]()

    async def usage(*asked: Any, **named: Any) -> tuple[list[Piece], Landed | None]:
        found, landed = await read(*asked, **named)
        looks.append(landed)
        if len(looks) > 1:
            return found, landed
        await book.use("2000000")
        return [replace(piece, quantity=piece.quantity * 9) for piece in found], landed

    monkeypatch.setattr(store, "usage", usage)
    async with open_objects(ObjectSettings(objects_url=tmp_path.as_uri()), book.database) as objects:
        invoices = Invoices(app_database, Archive(objects, system_database))
        outcome = await invoices.close(book.of.tenant, month("2026-03"), "test")
    assert (outcome.document.total, len(looks)) == ("7.50", 2)
    assert outcome.document.lake_version > (looks[0].lake_version if looks[0] else 0)
