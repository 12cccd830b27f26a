"""Every aggregation against an oracle: whatever is late, voided, repeated, sliced, folded or replayed, an hour, a
day, a snapshot, a draft and a live quota say what a recount of all events says."""

import asyncio
import json
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from datetime import UTC, datetime
from decimal import Decimal
from fractions import Fraction
from pathlib import Path
from typing import Any

import polars as pl
import pytest
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st

from assets.usage import facts
from assets.usage.asof import cells_as_of, cells_of, rows_as_of
from assets.usage.evidence import evidence
from assets.usage.folding import fold_full_blocks
from assets.usage.generation import TABLES
from assets.usage.landing import land
from assets.usage.publish import publish
from assets.usage.replay import rebuild
from assets.usage.rollup import daily, roll_up
from assets.usage.snapshot import Published, build, rateable, tables, usage_of, verify
from core.database import Database, tenant
from core.eventlog import open_eventlog
from core.eventlog.api import Record
from core.invoices import store as invoices
from core.lake import Lake
from core.meters import Aggregation, Meter, registered
from core.prices.book import EVERYBODY, Price, PriceBook
from core.rating import month_of, rate
from core.settings import DatabaseSettings, ObjectSettings
from core.tasks import cancel
from quality import gates
from services.billing import store
from services.billing.invariants import Invariants
from services.billing.live import LiveUsage
from services.billing.quota import Grain, Quota, question
from tests.assets.usage import aggregation_oracle as oracle
from tests.assets.usage.aggregation_oracle import Event, Ledger, Message, Void
from tests.assets.usage.lake import NOW, local_lake, records, slice_of
from tests.assets.usage.site import Site
from tests.assets.usage.test_publish import TABLES as PUBLISHED
from tests.assets.usage.test_publish import query

GROUPS = frozenset({"product"})
EXTRA = [
    Meter(
        name,
        "thing",
        "",
        "of a test",
        GROUPS | ({measured} if measured else set()),
        Aggregation(aggregation),
        measured,
    )
    for name, (aggregation, measured) in oracle.AGGREGATIONS.items()
]
PARTITIONS = 2
SLOW = [HealthCheck.too_slow, HealthCheck.data_too_large]
PHASES = (Phase.explicit, Phase.reuse, Phase.generate)
"""Shrinking lands each history anew and would take minutes."""


@pytest.fixture(autouse=True, scope="module")
def meters() -> Iterator[None]:
    with registered(*EXTRA):
        yield


def emptied(database: DatabaseSettings) -> DatabaseSettings:
    query(database, f"truncate {', '.join(PUBLISHED)}")
    return database


@pytest.fixture
def empty(postgres: DatabaseSettings) -> Iterator[DatabaseSettings]:
    yield emptied(postgres)
    emptied(postgres)


@st.composite
def events(draw: st.DrawFn, name: str, meters: list[str]) -> Event:
    """One event; few times, values and users, so that they meet."""
    meter = draw(st.sampled_from(meters))
    measured = {
        "seconds": st.sampled_from(["0", "0.5", "3", "86400"]),
        "user": st.sampled_from(["u1", "u2", "sha256:ab", "U-3"]),
    }
    product = draw(st.sampled_from([(), (("product", "a"),), (("product", "\u00e9"),)]))
    reads = oracle.AGGREGATIONS[meter][1]
    more = ((reads, draw(measured[reads])),) if reads else ()
    quantity = st.sampled_from(["0", "1", "2.50", "10", "0.000000002", "123456789012345678.12345678"])
    small = quantity.filter(lambda text: len(text) < 13)
    minutes = draw(st.sampled_from([0, -1, -2, -61, -720, -2160]))
    return Event(name, meter, minutes, draw(small if reads == "seconds" else quantity), (*more, *product))


@st.composite
def histories(draw: st.DrawFn, most: int = 4) -> list[list[list[Message]]]:
    """Slices of partitions of messages: events of a few names in two versions, repeated, and their voids."""
    names = [f"e{number}" for number in range(draw(st.integers(1, 9)))]
    meters = draw(st.lists(st.sampled_from(list(oracle.AGGREGATIONS)), min_size=1, max_size=2))
    first = {name: draw(events(name, meters)) for name in names}
    other = {name: draw(events(name, meters)) for name in names[:2]}
    message = st.one_of(
        st.sampled_from(list(first.values())),
        st.sampled_from(list(first.values())),
        st.sampled_from(list(other.values())),
        st.sampled_from([Void(name) for name in names]),
    )
    parts = st.lists(message, max_size=8)
    slices = st.lists(st.lists(parts, min_size=PARTITIONS, max_size=PARTITIONS), min_size=1, max_size=most)
    return draw(slices.filter(lambda found: all(any(slice_) for slice_ in found)))


def price(meter: str, **dimensions: str) -> Price:
    named = tuple(sorted(dimensions.items()))
    since = datetime(2020, 1, 1, tzinfo=UTC)
    return Price(EVERYBODY, meter, named, Decimal(2), 1, "USD", since, id=f"{meter}{named}", revision=1)


PRICES = [price(meter) for meter in oracle.AGGREGATIONS] + [
    price(meter, product="a") for meter in oracle.AGGREGATIONS
]


def charged(standing: Sequence[Event]) -> dict[oracle.Key, Fraction]:
    """Quantities of lines: by meter, product `a` or any, and the month where quantities are not just added."""

    def line(event: Event) -> oracle.Key:
        own = ("product", "a") in event.dimensions
        added = oracle.AGGREGATIONS[event.meter][0] in oracle.ADDED
        return event.meter, own, None if added else oracle.start_of(event, "month")

    return {key: found for key, (found, _) in oracle.gathered(standing, line).items()}


def lines(rated: Any) -> dict[oracle.Key, Fraction]:
    """The same of a rating; lines that charge nothing for nothing left out."""
    return {
        (one.price.meter, bool(one.price.dimensions), one.period and one.period.start): Fraction(one.quantity)
        for one in rated
    }


def compare(
    found: dict[oracle.Key, tuple[Fraction, int]], expected: dict[oracle.Key, tuple[Fraction, int]]
) -> None:
    """Cells whose events were all voided are there with nothing in them."""
    assert {key: cell for key, cell in found.items() if cell[1]} == expected
    assert all(not any(cell) for key, cell in found.items() if key not in expected)


def frame_cells(frame: pl.DataFrame) -> dict[oracle.Key, tuple[Fraction, int]]:
    rows = frame.select("meter", pl.nth(frame.columns.index("hour")), "dimensions", "quantity", "events")
    return {(meter, start, text): (Fraction(q), n) for meter, start, text, q, n in rows.iter_rows()}


def published_cells(database: DatabaseSettings, grain: str) -> dict[oracle.Key, tuple[Fraction, int]]:
    found = query(
        database,
        f"select meter, period_start, dimensions, quantity, events from usage_cell where grain = '{grain}'",
    )
    return {
        (
            meter,
            start.astimezone(UTC),
            json.dumps(named, sort_keys=True, separators=(",", ":"), ensure_ascii=False),
        ): (Fraction(q), n)
        for meter, start, named, q, n in found
    }


class Stand:
    """A lake, and what is published of it, slice by slice."""

    def __init__(self, folder: Path, database: DatabaseSettings) -> None:
        self.folder, self.database, self.lake = folder, emptied(database), local_lake(folder)
        self.ends = dict.fromkeys(range(PARTITIONS), 0)
        self.ledger, self.known, self.slices = Ledger(), list[list[Event]](), 0

    def take(self, partitions: Sequence[Sequence[Message]]) -> None:
        batches = list[list[Record]]()
        for number, messages in enumerate(partitions):
            if messages:
                values = [message.encode() for message in messages]
                batches.append(records(values, partition=number, start=self.ends[number]))
                self.ends[number] += len(messages)
        land(self.lake, self.folder / "index", slice_of(*batches), batches)
        roll_up(self.lake)
        self.slices += 1
        found = evidence(self.lake, self.slices, self.slices)
        assert gates.problems(found) == []
        daily(self.lake)
        publish(self.lake, self.database)
        self.ledger.land(message for messages in partitions for message in messages)
        self.known.append(self.ledger.standing)


@settings(max_examples=30, deadline=None, phases=PHASES, suppress_health_check=SLOW)
@given(history=histories())
def test_hours_days_snapshots_and_drafts_are_a_recount(postgres: DatabaseSettings, history: Any) -> None:
    with tempfile.TemporaryDirectory() as folder:
        stand = Stand(Path(folder), postgres)
        for slice_ in history:
            stand.take(slice_)
            for grain in ("hour", "day"):
                compare(published_cells(postgres, grain), oracle.cells(stand.ledger.standing, grain))
        last, standing = stand.slices, stand.ledger.standing
        fold_full_blocks(stand.lake, 0, last, (2, 4))
        for number, then in enumerate(stand.known, 1):
            compare(frame_cells(cells_as_of(stand.lake, number)), oracle.cells(then, "hour"))
        rows = rows_as_of(stand.lake, last)
        days = cells_of(rows.with_columns(pl.col("hour").dt.truncate("1d")))
        compare(frame_cells(days), oracle.cells(standing, "day"))
        frames, left_out = tables(rows, Published(1, last, {}, PRICES, {}))
        assert not left_out
        path = Path(folder) / "snapshot.duckdb"
        build(path, frames, {"lake_version": "1"})
        verify(path, rateable(rows), PRICES)
        snapshot = {
            (row["meter"], row["dimensions"] != "{}", row["service_period_start"]): Fraction(row["quantity"])
            for row in frames["charges"].iter_rows(named=True)
        }
        assert {key: q for key, q in snapshot.items() if q or key in charged(standing)} == charged(standing)
        draft = lines(asyncio.run(rated(postgres)))
        assert {key: q for key, q in draft.items() if q or key in charged(standing)} == charged(standing)
        counted = facts.pieces(stand.lake, facts.Wanted(oracle.TENANT, last), [])
        usage = usage_of(counted.rename({"first": "hour"}))
        found = lines(rate(usage, PriceBook(oracle.TENANT, PRICES)).lines)
        assert {key: q for key, q in found.items() if q or key in charged(standing)} == charged(standing)
        again = Lake(ObjectSettings(objects_url=f"file://{folder}"), generation=2, of=TABLES)
        rebuild(stand.lake, again, Path(folder) / "index.2", 1, None)
        compare(frame_cells(cells_as_of(again, last)), oracle.cells(standing, "hour"))


async def rated(database: DatabaseSettings) -> Any:
    """Lines of a draft, from what is published."""
    app = Database(database, role="app")
    try:
        with tenant(oracle.TENANT):
            async with app.reader() as connection:
                pieces, _ = await invoices.usage(connection, [])
    finally:
        await app.close()
    return rate((piece.usage for piece in pieces), PriceBook(oracle.TENANT, PRICES)).lines


@settings(
    max_examples=20,
    deadline=None,
    phases=PHASES,
    suppress_health_check=[*SLOW, HealthCheck.function_scoped_fixture],
)
@given(before=histories(most=2), behind=histories(most=1))
def test_a_live_quota_is_a_recount_of_cells_and_tail(local_site: Site, before: Any, behind: Any) -> None:
    """All under one key, so in one partition: what is published, then what only the log holds."""
    local_site.reset()
    emptied(local_site.database)
    with tempfile.TemporaryDirectory() as folder, ExitStack() as stack:
        stack.callback(emptied, local_site.database)
        site = Site(
            local_site.database,
            local_site.eventlog,
            ObjectSettings(objects_url=f"file://{folder}"),
            Path(folder),
        )
        ledger = Ledger()
        for slice_ in before:
            messages = [message for part in slice_ for message in part]
            site.send([message.encode() for message in messages])
            assert site.carry() == 1
            ledger.land(messages)
        tail = [message for part in behind[0] for message in part]
        site.send([message.encode() for message in tail])
        live = ledger.copy()
        live.read_behind(tail)
        asyncio.run(ask(site, live.standing))
        site.carry()
        ledger.land(tail)
        asyncio.run(ask(site, ledger.standing))
        assert asyncio.run(invariants(site.database))


async def ask(site: Site, standing: list[Event]) -> None:
    """The quota at every grain, beside a recount."""
    app, system = Database(site.database, role="app"), Database(site.database, role="system")

    async def published() -> Any:
        async with system.writer() as connection:
            return await store.published(connection)

    try:
        async with open_eventlog(site.eventlog, site.database) as log:
            live = LiveUsage(log, published)
            task = asyncio.create_task(live.run())
            try:
                while not live.is_live:  # noqa: ASYNC110 - the service has no event for it
                    await asyncio.sleep(0.01)
                quota = Quota(app, live)
                grains: tuple[Grain, ...] = ("total", "hour", "day")
                for grain in grains:
                    answer = await quota.answer(question(oracle.TENANT, grain, None, None, None))
                    assert answer["live"]
                    judge(answer, standing, grain)
                morning = NOW.replace(hour=11)
                answer = await quota.answer(question(oracle.TENANT, "total", morning, None, None))
                judge(answer, [event for event in standing if event.time >= morning], "total")
                one = await quota.answer(question(oracle.TENANT, "total", None, None, "t.unique"))
                judge(one, [event for event in standing if event.meter == "t.unique"], "total")
            finally:
                await cancel(task)
    finally:
        await app.close()
        await system.close()


def judge(answer: Any, standing: list[Event], grain: str) -> None:
    whole = oracle.gathered(standing, lambda event: (event.meter,))
    quantities = {meter: Fraction(text) for meter, text in answer["quantities"].items()}
    assert {m: q for m, q in quantities.items() if (m,) in whole} == {m: q for (m,), (q, _) in whole.items()}
    assert {m: q for m, q in quantities.items() if q and (m,) not in whole} == {}
    found: dict[oracle.Key, tuple[Fraction, int]] = {}
    for cell in answer["data"]:
        start = None if grain == "total" else datetime.fromisoformat(cell["period_start"])
        text = json.dumps(
            cell.get("dimensions", {}), sort_keys=True, separators=(",", ":"), ensure_ascii=False
        )
        found[cell["meter"], start, text] = Fraction(cell["quantity"]), cell["events"]
    if grain == "total":
        compare(found, {(m, None, "{}"): cell for (m,), cell in whole.items()})
    else:
        compare(found, oracle.cells(standing, grain))
        periods = {
            (one["meter"], datetime.fromisoformat(one["period_start"])): Fraction(one["quantity"])
            for one in answer["periods"]
        }
        each = oracle.gathered(standing, lambda event: (event.meter, oracle.start_of(event, grain)))
        assert {key: q for key, q in periods.items() if q or key in each} == {
            k: q for k, (q, _) in each.items()
        }


async def invariants(database: DatabaseSettings) -> bool:
    app, system = Database(database, role="app"), Database(database, role="system")
    try:
        return bool((await Invariants(app, system).of(oracle.TENANT, month_of(NOW)))["holds"])
    finally:
        await app.close()
        await system.close()
