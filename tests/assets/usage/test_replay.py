"""Usage made anew from its own records: the same where nothing changed, compared where something did, and what
counts is one row."""

from datetime import timedelta
from decimal import Decimal
from pathlib import Path
from typing import Any

import polars as pl
import pytest

from assets.slices.progress import SUCCESSOR
from assets.usage import generation, promotion, reading, replay, schema
from assets.usage.again import as_stored, read_again
from assets.usage.asof import cells_as_of
from assets.usage.generation import current, index_folder, usage_lake
from assets.usage.imports import FAULTS
from assets.usage.landing import land
from assets.usage.lineage import SucceededError, check
from assets.usage.progress import landed_slice, next_slice, published_slice, published_version
from assets.usage.promotion import ReplayError, begin, build, discard, find, promote
from assets.usage.publish import publish
from core.content import digest
from core.contracts.usage import (
    Checkpoint,
    Claim,
    Reference,
    UsageData,
    UsageEvent,
    VoidEvent,
    identities_hash,
)
from core.eventlog.bulk import read_slice
from core.lake import Lake
from core.lake.commit import StaleError, commit
from quality.gates import problems
from tests.assets.usage.lake import NOW, event
from tests.assets.usage.site import Site
from tests.assets.usage.test_incidents import delete_before_landing, say_yes
from tests.assets.usage.test_purge import go

KEY = "org_a|"
OLD = timedelta(days=500)


def usage(number: int, **more: Any) -> UsageEvent:
    data = UsageData("llm.tokens.input", more.pop("quantity", "5"), {"model": "m"} if number % 2 else {})
    named = {"id": f"e{number}", "source": "s", "time": NOW, "tenant": "org_a", **more}
    return UsageEvent(data=data, type="headrace.usage.v1", specversion="1.0", **named)


def void(number: int, of: int, **more: Any) -> VoidEvent:
    named = {"id": f"v{number}", "source": "s", "time": NOW, "tenant": "org_a", **more}
    return VoidEvent(data=Reference("s", f"e{of}"), type="headrace.usage.void.v1", specversion="1.0", **named)


def claim(of: list[UsageEvent]) -> Checkpoint:
    data = Claim("p", 1, len(of), len(of), identities_hash(each.identity for each in of), "x")
    return Checkpoint(
        id="c1", source="s", time=NOW, tenant="org_a", type="headrace.usage.checkpoint.v1", specversion="1.0", data=data
    )  # fmt: skip


def fill(site: Site) -> None:
    """Everything that a topic holds: usage, copies, conflicts, old ones, imports that were declared so and others, voids
    of what landed before, in the same slice and never, checkpoints, and what nobody can read."""
    numbered = [usage(n, producer="p", incarnation="x", sequence=n - 99) for n in range(100, 103)]
    slices: list[list[bytes]] = [
        [event(1), event(2, quantity="0.000000001"), event(1), event(2, quantity="9"), b"unreadable"],
        [usage(3, time=NOW - OLD).encode(), usage(4, time=NOW - OLD, importid="imp_1").encode(), usage(5, subject="cus_1").encode(),
         usage(40, time=NOW - OLD, importid="imp_2").encode(), usage(41, source="x", importid="imp_1").encode(), void(9, 1, importid="imp_2").encode()],
        [void(1, 1).encode(), void(2, 1).encode(), void(3, 77).encode(), *(each.encode() for each in numbered), claim(numbered).encode()],
        [usage(6).encode(), void(6, 6).encode(), event(7), b'{"id": "x"}', event(8, minutes=-60)],
        [event(1), void(8, 8).encode(), event(9, quantity="123456789012345678.123456789")],
    ]  # fmt: skip
    for values in slices:
        site.send(values, key=KEY)
        assert site.carry() == 1


def rows(lake: Lake) -> pl.DataFrame:
    handle = lake.open(schema.EVENTS)
    assert handle is not None
    frame = pl.DataFrame(handle.to_pyarrow_table()).sort("slice", "partition", "offset")
    return frame.select(schema.EVENTS_SCHEMA.keys())


def cells(lake: Lake) -> str:
    return digest(cells_as_of(lake, landed_slice(lake)).iter_rows())


def other(site: Site, number: int) -> Lake:
    return usage_lake(site.objects, site.database, number)


def run(site: Site, **more: Any) -> tuple[int, Any]:
    made = begin(site.database, by="usr_1", **more)
    return made, build(site.objects, site.database, site.state, made)


def yes(site: Site, made: int) -> int:
    return promote(site.objects, site.database, site.state, made, problems, by="usr_1")


@pytest.mark.parametrize("reader", [read_again, as_stored])
def test_rows_are_read_as_their_records_were(local_site: Site, reader: Any) -> None:
    fill(local_site)
    whole = rows(local_site.lake())
    assert set(whole["fate"]) == {"counted", "duplicate", "quarantined", "rejected"}
    assert set(whole["kind"]) == {"usage", "void", "checkpoint", None}
    assert {"conflict", "out_of_limits", "unknown_reference", *FAULTS} < set(whole["code"])
    for part in whole.partition_by("slice"):
        again = reader(part)
        for name in ("partition", "offset", "content"):
            kept = part["kind"].is_not_null().to_numpy()
            assert (getattr(again, name)[kept] == part[name].to_numpy()[kept]).all(), name
        decided = ("conflict", "unknown_reference")
        quarantined = (part["fate"] == "quarantined") & ~part["code"].is_in(decided).fill_null(value=False)
        assert (again.readable & ~again.acceptable == quarantined.to_numpy()).all()
        names = ("received", "tenant", "source", "event_id", "identity", "subject", "importid", "kind", "data", "producer",
                 "incarnation", "sequence", "raw")  # fmt: skip
        assert again.frame.select(names).equals(part.select(names), null_equal=True)


def test_a_replay_of_the_lake_alone_is_the_same_to_the_hash(site: Site) -> None:
    fill(site)
    go(site)
    assert all(bound.low == bound.high for bound in site.bounds().values()), (
        "the topic holds nothing any more"
    )
    made, found = run(site)
    assert found.through == landed_slice(site.lake()) == 5
    assert (len(found.events), len(found.cells), found.charges) == (0, 0, [])
    old, new = site.lake(), other(site, made)
    assert rows(new).equals(rows(old), null_equal=True)
    assert cells(new) == cells(old)


def test_one_that_died_goes_on(site: Site, monkeypatch: pytest.MonkeyPatch) -> None:
    fill(site)
    monkeypatch.setattr(replay, "ROWS_AT_ONCE", 6)
    commits = 0

    def dies(*arguments: Any, **more: Any) -> int:
        nonlocal commits
        commits += 1
        if commits == 3:
            raise InterruptedError
        return commit(*arguments, **more)

    made = begin(site.database, by="usr_1")
    monkeypatch.setattr(replay, "commit", dies)
    with pytest.raises(InterruptedError):
        build(site.objects, site.database, site.state, made)
    assert 0 < landed_slice(other(site, made)) < 5
    monkeypatch.setattr(replay, "commit", commit)
    found = build(site.objects, site.database, site.state, made)
    assert (found.through, len(found.events), len(found.cells)) == (5, 0, 0)
    assert rows(other(site, made)).equals(rows(site.lake()), null_equal=True)


def test_other_code_is_compared_event_by_event_and_cell_by_cell(
    site: Site, monkeypatch: pytest.MonkeyPatch
) -> None:
    fill(site)
    before = site.cells()
    monkeypatch.setattr(reading, "MAX_AGE", timedelta(days=1000))
    _, found = run(site)
    assert found.events.to_dicts() == [
        {
            "tenant": "org_a", "fate": "quarantined", "code": "out_of_limits", "new_fate": "counted", "new_code": None,
            "records": 1,
        }
    ]  # fmt: skip
    assert found.samples.select("slice", "new_fate").rows() == [(2, "counted")]
    (cell,) = found.cells.to_dicts()
    assert (cell["quantity"], cell["new_quantity"]) == (Decimal(0), Decimal(5))
    assert (cell["events"], cell["new_events"]) == (0, 1)
    report = found.report()
    assert report["cells"][0]["new_quantity"] == "5.000000000"
    assert (site.cells(), current(site.database)) == (before, 1), "nothing counts yet"


def test_only_the_range_is_read_again(site: Site, monkeypatch: pytest.MonkeyPatch) -> None:
    fill(site)
    monkeypatch.setattr(reading, "MAX_AGE", timedelta(days=1000))
    for first, last, differ in ((1, 1, 0), (2, 2, 1), (3, None, 0), (1, None, 1)):
        made, found = run(site, first=first, last=last)
        assert found.events["records"].sum() == differ, (first, last)
        discard(site.objects, site.database, site.state, made, by="usr_1")


def test_a_void_that_was_refused_for_its_time_stays_refused(site: Site) -> None:
    for value in (event(1), void(1, 1, time=NOW - OLD).encode()):
        site.send([value], key=KEY)
        assert site.carry() == 1
    refused = rows(site.lake()).filter(kind="void")
    assert refused.select("fate", "code", "quantity", "ref_slice", "event_time").rows() == [
        ("quarantined", "out_of_limits", None, None, NOW - OLD)
    ]
    made, found = run(site)
    assert (len(found.events), len(found.cells)) == (0, 0)
    assert rows(other(site, made)).equals(rows(site.lake()), null_equal=True)


@pytest.mark.parametrize("last", [None, 1])
def test_a_refused_void_that_bears_what_it_names_stays_refused(site: Site, last: int | None) -> None:
    """As rows landed when a refused void took over the time of its event: its own is lost."""
    site.send([event(1), event(2)], key=KEY)
    assert site.carry() == 1
    site.send([void(1, 1, time=NOW - OLD).encode()], key=KEY)
    assert site.carry() == 1
    lake = site.lake()
    handle = lake.open(schema.EVENTS)
    assert handle is not None
    original = rows(lake).row(0, named=True)
    bears = {
        "ref_slice": "1", "ref_partition": str(original["partition"]), "ref_offset": str(original["offset"]),
        "quantity": "-5", "event_time": f"to_timestamp('{NOW.isoformat()}')",
    }  # fmt: skip
    handle.update(updates=bears, predicate="kind = 'void'")
    assert rows(site.lake()).filter(kind="void")["event_time"].to_list() == [NOW]
    before = cells(site.lake())
    for options in ({"last": last}, {}):
        made, found = run(site, **options)
        assert len(found.cells) == 0, options
        yes(site, made)
        refused = rows(site.lake()).filter(kind="void")
        assert refused.select("fate", "code", "quantity", "ref_slice").rows() == [
            ("quarantined", "out_of_limits", None, None)
        ]
    assert cells(site.lake()) == before


def test_promotion_is_one_row_and_everything_follows(site: Site, monkeypatch: pytest.MonkeyPatch) -> None:
    fill(site)
    before, version = site.cells(), published_version(site.database)
    monkeypatch.setattr(reading, "MAX_AGE", timedelta(days=1000))
    made, _ = run(site)
    site.send([event(20)], key=KEY)
    assert site.carry() == 1, "landing goes on beside a replay"
    assert site.cells() != before
    gone = (
        "insert into usage_cell select 'org_gone', 'hour', meter, period_start, dimensions, dimensions_key, quantity, "
        "events, lake_version from usage_cell limit 1 returning 1",
        "insert into usage_element select tenant_id, meter, period_start, dimensions, dimensions_key, 'gone', quantity, "
        "events, lake_version from usage_cell limit 1 returning 1",
    )
    assert [site.sql(one) for one in gone] == [[(1,)], [(1,)]], "the new generation has no such cell"
    assert yes(site, made) == 6
    assert site.sql("select 1 from usage_element where element = 'gone'") == []
    assert current(site.database) == made
    assert published_slice(site.database) == 6
    assert version is not None
    assert (published_version(site.database) or 0) > version
    assert digest(
        site.sql(
            "select tenant_id, meter, period_start, dimensions::text, quantity, events from usage_cell where grain = 'hour'"
        )
    ) == digest(
        (tenant, meter, hour, dimensions.replace(":", ": "), quantity, events)
        for tenant, meter, hour, dimensions, quantity, events in cells_as_of(site.lake(), 6).iter_rows()
    )
    assert site.sql("select count(*) from usage_quarantine where code = 'out_of_limits'") == [(0,)]
    fates = site.sql("select sum(landed), sum(counted), sum(quarantined) from usage_conservation")
    assert fates == [
        tuple(
            len(rows(site.lake()).filter(f))
            for f in (True, pl.col("fate") == "counted", pl.col("fate") == "quarantined")
        )
    ]
    site.send([event(1), event(21)], key=KEY)
    assert site.carry() == 1
    assert site.lake().generation == made
    assert rows(site.lake()).filter(slice=7)["fate"].to_list() == ["duplicate", "counted"]
    assert go(site).plan.refused == {}
    assert yes(site, made) == 7, "promoting it again changes nothing"


def test_nothing_lands_in_tables_that_were_closed(site: Site) -> None:
    fill(site)
    old = site.lake()
    site.send([event(30)], key=KEY)
    piece = next_slice(old, site.eventlog, site.database, schema.TOPIC, schema.EVENTS)
    assert piece is not None
    batches = list(read_slice(site.eventlog, site.database, piece))
    made, _ = run(site)
    yes(site, made)
    with pytest.raises(StaleError, match=SUCCESSOR):
        land(other(site, 1), index_folder(site.state, 1), piece, batches)
    with pytest.raises(SucceededError, match=f"{made} counts now"):
        check(other(site, 1), site.database)
    before = site.cells()
    assert publish(other(site, 1), site.database) is not None
    assert site.cells() == before
    assert landed_slice(other(site, 1)) == 5
    assert site.carry() == 1
    assert landed_slice(site.lake()) == 6


def test_whoever_finds_the_tables_closed_says_so(site: Site, monkeypatch: pytest.MonkeyPatch) -> None:
    """The process that promotes dies between closing the old tables and the row."""
    fill(site)
    made, _ = run(site)

    def dies(*_: Any) -> None:
        raise InterruptedError

    monkeypatch.setattr(promotion, "finish", dies)
    with pytest.raises(InterruptedError):
        yes(site, made)
    monkeypatch.undo()
    assert current(site.database) == 1
    site.send([event(40)], key=KEY)
    with pytest.raises(SucceededError):
        site.land()
    assert current(site.database) == made
    assert site.carry() == 1
    assert published_slice(site.database) == 6


def test_a_discarded_generation_leaves_nothing(site: Site) -> None:
    fill(site)
    made, _ = run(site)
    discard(site.objects, site.database, site.state, made, by="usr_1")
    assert other(site, made).open(schema.EVENTS) is None
    assert not index_folder(site.state, made).exists()
    with pytest.raises(ReplayError, match="discarded"):
        yes(site, made)
    assert find(site.database, made).discarded
    assert begin(site.database, by="usr_1") == made + 1
    with pytest.raises(ReplayError, match="not built yet"):
        yes(site, made + 1)


def test_one_made_from_what_counts_no_more_cannot_be_promoted(site: Site) -> None:
    fill(site)
    first, _ = run(site)
    second, _ = run(site)
    yes(site, first)
    with pytest.raises(ReplayError, match=f"was made from 1, in use is {first}"):
        yes(site, second)
    third, found = run(site)
    assert len(found.events) == 0
    yes(site, third)
    assert current(site.database) == third
    assert site.lake().generation == third


def test_lost_ranges_stay_lost(site: Site) -> None:
    site.send([event(1)], key="org_a|1")
    site.carry()
    (partition,) = [p for p, bound in site.bounds().items() if bound.high]
    first, end = delete_before_landing(site, partition, 4)
    say_yes(site, f"gap:usage.records:{ids(site)}:{partition}:{first}-{end}")
    site.send([event(2)], key="org_a|1")
    site.carry()
    made, found = run(site)
    assert len(found.events) == 0
    yes(site, made)
    site.send([event(3)], key="org_a|1")
    assert site.carry() == 1
    assert go(site).plan.refused == {}


def ids(site: Site) -> str:
    from tests.assets.usage.test_incidents import ids as of  # noqa: PLC0415

    return of(site)


def test_the_tables_of_a_generation_are_named_once() -> None:
    assert generation.TABLES == (schema.EVENTS, schema.HOURLY, schema.DAILY)


def test_names_of_folders(tmp_path: Path) -> None:
    assert index_folder(tmp_path, 1) == tmp_path / "identity-index"
    assert index_folder(tmp_path, 2) == tmp_path / "identity-index.2"
