"""Records leave the log when it is proven that the lake has them, and never without (check 5)."""

import asyncio
import re
from collections.abc import Callable
from dataclasses import replace
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest

from assets.usage import purge as purging
from assets.usage import schema
from assets.usage.objects import recorded
from assets.usage.progress import published_slice
from assets.usage.proof import prove
from assets.usage.purge import BeyondEvidenceError, Permit, Purged, is_due, plan, purge
from core import crash
from core.eventlog.api import TopicChangedError
from core.lake.maintenance import compact
from tests.assets.usage.lake import event
from tests.assets.usage.site import Site

NOW, DAY = timedelta(0), timedelta(hours=24)
KEYS = ("org_a|1", "org_a|2", "org_b|", "org_c|", "org_d|x", "org_e|y")
"""Enough of them to have records in several partitions."""


def fill(site: Site, *, slices: int, first: int = 0) -> None:
    """Slices of six events each, one of them again and one unreadable record."""
    for number in range(first, first + slices):
        for position, key in enumerate(KEYS):
            tenant = key.split("|")[0]
            site.send([event(number * 10 + position, tenant=tenant), event(1, tenant=tenant)], key=key)
        site.send([b"unreadable"])
        assert site.carry() == 1


def go(site: Site, *, lag: timedelta = NOW, most: int = 1_000_000) -> Purged:
    return purge(site.lake(), site.eventlog, site.database, lag=lag, most=most)


def lows(site: Site) -> dict[int, int]:
    return {partition: bound.low for partition, bound in site.bounds().items()}


def highs(site: Site) -> dict[int, int]:
    return {partition: bound.high for partition, bound in site.bounds().items()}


def log_of(site: Site) -> list[tuple[Any, ...]]:
    return site.sql(
        "select partition, low_before, before_offset, proven_offset, low_after, done_at is not null from usage_purge order by id"
    )


def flip(position: int) -> Callable[[bytes], bytes]:
    """One bit of one byte, counted from the end where negative."""

    def change(data: bytes) -> bytes:
        changed = bytearray(data)
        changed[position] ^= 1
        return bytes(changed)

    return change


def test_5_what_is_proven_goes_and_the_answer_is_written_down(site: Site) -> None:
    fill(site, slices=3)
    ends, cells = highs(site), site.cells()
    assert is_due(site.lake(), site.eventlog, site.database, lag=NOW)
    done = go(site)
    assert done.lows == {p: end for p, end in ends.items() if end}
    assert lows(site) == ends
    assert log_of(site) == [(p, 0, end, end, end, True) for p, end in ends.items() if end]
    ((evidence,),) = site.sql("select evidence from usage_purge limit 1")
    proof = done.plan.proof
    assert proof is not None
    assert evidence["rollup_sha256"] == proof.rollup
    assert {each["sha256"] for each in evidence["objects"]} <= {each.sha256 for each in proof.objects}
    assert not is_due(site.lake(), site.eventlog, site.database, lag=NOW)
    # The log has nothing left of it; the objects alone give the sums that are billed.
    again = prove(site.lake(), recorded(site.lake(), site.database), 1, published_slice(site.database))
    assert (again.rollup, again.holds) == (proof.rollup, True)
    assert go(site).lows == {}
    fill(site, slices=1, first=50)
    assert site.cells() != cells
    assert go(site).lows == {p: end for p, end in highs(site).items() if end > ends[p]}


def test_objects_with_and_without_elements_are_proven_together(site: Site) -> None:
    """A sum has none, and the columns of the two kinds of object come in one order."""
    site.send([event(1), event(3)])
    site.carry()
    site.send([event(2).replace(b"llm.tokens.input", b"storage.peak"), event(5)])
    site.carry()
    site.send([event(7)])
    site.carry()
    assert site.sql("select count(*) from usage_element") == [(1,)]
    done = go(site)
    assert done.plan.refused == {}
    assert sum(done.lows.values()) == 5


def test_nothing_goes_before_the_safety_lag(site: Site) -> None:
    fill(site, slices=1)
    assert not is_due(site.lake(), site.eventlog, site.database, lag=DAY)
    assert go(site, lag=DAY).lows == {}
    first = highs(site)
    site.sql("update usage_publication set published_at = now() - interval '25 hours'", owner=True)
    fill(site, slices=1, first=50)
    assert go(site, lag=DAY).lows == {p: end for p, end in first.items() if end}
    assert lows(site) == first


def test_one_run_proves_about_as_much_as_it_is_told(site: Site) -> None:
    fill(site, slices=3)
    ends = highs(site)
    sums = [sum(go(site, most=20).lows.values()) for _ in range(4)]
    assert sums == [13, 26, sum(ends.values()), 0]
    assert lows(site) == ends


def test_a_hold_stops_what_it_covers(site: Site) -> None:
    fill(site, slices=1)
    busiest = max(highs(site), key=lambda p: highs(site)[p])
    hold = "insert into usage_hold (id, name, partition, reason, placed_by) values (%s, 'a', %s, 'dispute', 'user_1')"
    site.sql(hold, ("hold_1", None))
    assert not is_due(site.lake(), site.eventlog, site.database, lag=NOW)
    held = go(site)
    assert (held.lows, set(held.plan.held)) == ({}, set(highs(site)))
    site.sql("update usage_hold set lifted_at = now(), lifted_by = 'user_1'")
    site.sql(hold, ("hold_2", busiest))
    assert go(site).lows == {p: end for p, end in highs(site).items() if end and p != busiest}
    assert lows(site)[busiest] == 0


@pytest.mark.parametrize("position", [0, 200, 1000, -100, -1])
def test_5_one_byte_that_changed_refuses_the_partitions_of_its_object(site: Site, position: int) -> None:
    """Check 5: whatever the byte is part of: a value, a statistic, the name of the program that wrote it."""
    fill(site, slices=2)
    second = recorded(site.lake(), site.database)[1]
    site.damage(second.path, flip(position))
    done = go(site)
    assert done.lows == {}
    assert lows(site) == dict.fromkeys(lows(site), 0)
    assert set(done.plan.refused) == {part.partition for part in second.ranges}
    (message,) = {text for texts in done.plan.refused.values() for text in texts}
    assert second.path in message
    assert "is changed: its SHA-256 was" in message
    for part in second.ranges:
        assert f"partition {part.partition}, offsets {part.first} to {part.end - 1}" in message
    assert "tenants -, org_a, org_b, org_c, org_d and 1 more" in message or "tenants org_a, org_b" in message
    assert log_of(site) == []


def test_5_partitions_without_the_broken_object_go_on_up_to_it(site: Site) -> None:
    fill(site, slices=1)
    ends = highs(site)
    site.send([event(1000 + number) for number in range(3)], key="org_z|")
    site.carry()
    (only,) = [p for p, high in highs(site).items() if high > ends[p]]
    lone = recorded(site.lake(), site.database)[-1]
    assert {part.partition for part in lone.ranges} == {only}
    site.damage(lone.path, lambda data: data[:-1])
    done = go(site)
    assert set(done.plan.refused) == {only}
    assert done.lows == {p: end for p, end in ends.items() if end and p != only}


def test_an_object_that_is_gone_is_named(site: Site) -> None:
    fill(site, slices=1)
    (known,) = recorded(site.lake(), site.database)
    site.lose(known.path)
    done = go(site)
    assert done.lows == {}
    assert f"object usage_events/{known.path}" in str(done.plan.refused)
    assert "is lost" in str(done.plan.refused)


def test_rows_that_do_not_give_the_billed_sums_refuse_everything(site: Site) -> None:
    """The bytes are as they were written and still not what is billed."""
    fill(site, slices=2)
    handle = site.lake().open(schema.HOURLY)
    assert handle is not None
    handle.update(updates={"quantity": "quantity + 1"}, predicate="kind = 'cell' and tenant = 'org_c'")
    done = go(site)
    assert done.lows == {}
    assert set(done.plan.refused) == {p for p, end in highs(site).items() if end}
    assert "rolled up from their objects they give" in str(done.plan.refused)


def test_a_row_that_contradicts_its_own_hash_refuses_everything(site: Site) -> None:
    """An object that nobody recorded when it was written is not taken at its word."""
    fill(site, slices=1)
    handle = site.lake().open(schema.EVENTS)
    assert handle is not None
    handle.update(updates={"subject": "'cus_9'"}, predicate="tenant = 'org_b' and fate = 'counted'")
    done = go(site)
    assert done.lows == {}
    assert "rows do not say what their own hashes say" in str(done.plan.refused)


def test_compacted_objects_are_evidence_like_others(site: Site) -> None:
    fill(site, slices=3)
    ends = highs(site)
    before = {each.path for each in recorded(site.lake(), site.database)}
    assert compact(site.lake(), schema.EVENTS, order=schema.ORDERS[schema.EVENTS]).removed == 3
    assert go(site).lows == {p: end for p, end in ends.items() if end}
    assert {
        path for (path,) in site.sql("select path from usage_object where replaced_at is not null")
    } == before


def test_a_purge_that_died_after_its_intent_is_done_again(
    site: Site, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Crash point 14: written, not executed."""
    fill(site, slices=1)
    ends = {p: end for p, end in highs(site).items() if end}

    def here(point: str) -> None:
        if point == "purge-intended":
            raise InterruptedError

    monkeypatch.setattr(crash, "here", here)
    with pytest.raises(InterruptedError):
        go(site)
    monkeypatch.undo()
    assert [row[4:] for row in log_of(site)] == [(None, False)] * len(ends)
    assert lows(site) == dict.fromkeys(lows(site), 0)
    assert go(site).lows == ends
    assert [row[4:] for row in log_of(site)] == [(end, True) for end in ends.values()] * 2


def test_a_purge_that_died_before_its_answer_was_stored_is_closed(
    site: Site, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Crash point 15: executed, the answer not written down."""
    fill(site, slices=1)
    ends = {p: end for p, end in highs(site).items() if end}
    with monkeypatch.context() as cut:
        cut.setattr(purging, "_close", lambda *_: None)
        assert go(site).lows == ends
    assert [row[4:] for row in log_of(site)] == [(None, False)] * len(ends)
    assert go(site).lows == {}
    assert [row[4:] for row in log_of(site)] == [(end, True) for end in ends.values()]


def test_a_topic_made_anew_meanwhile_keeps_its_records(site: Site) -> None:
    fill(site, slices=1)
    decided = plan(site.lake(), site.eventlog, site.database, lag=NOW, most=1000)
    stranger = [replace(permit, topic_id="another") for permit in decided.permits]
    with pytest.raises(TopicChangedError, match="nothing was purged"):
        asyncio.run(purging._delete(site.eventlog, site.database, stranger))
    assert lows(site) == dict.fromkeys(lows(site), 0)


GOOD = Permit("t", 0, low=3, before=7, proven=8, high=9)


@pytest.mark.parametrize(
    "change",
    [
        {"before": -1}, {"before": 0}, {"before": 3}, {"before": 9, "high": 10}, {"high": 6}, {"proven": 6}, {"low": -1},
        {"before": 7.0}, {"before": True}, {"before": "7"}, {"before": None},
    ],
)  # fmt: skip
def test_5_no_permit_is_beyond_its_evidence(change: dict[str, Any]) -> None:
    """-1 is Kafka's word for all; nothing above what was proven or above the log's end."""
    with pytest.raises((BeyondEvidenceError, TypeError)):
        replace(GOOD, **change)


def test_5_the_database_refuses_an_intent_beyond_its_evidence(site: Site) -> None:
    insert = (
        "insert into usage_purge (topic_id, partition, low_before, before_offset, proven_offset, high, evidence) "
        "values ('t', 0, %s, %s, %s, %s, '{}')"
    )
    for values in ((0, -1, 5, 5), (0, 6, 5, 9), (0, 6, 9, 5), (6, 6, 9, 9)):
        with pytest.raises(Exception, match="violates check constraint"):
            site.sql(insert, values)


def test_5_records_are_deleted_in_one_place_only() -> None:
    """Everybody who calls `purge` of the event log, in the whole platform."""
    root = Path(__file__).parents[3]
    callers = {
        str(path.relative_to(root))
        for folder in ("assets", "core", "deploy", "pipelines", "quality", "sensors", "services")
        for path in (root / folder).rglob("*.py")
        if re.search(r"\.(purge|delete_records)\(", path.read_text())
    }
    assert callers == {"assets/usage/purge.py", "core/eventlog/kafka.py", "core/eventlog/kafka_admin.py"}
