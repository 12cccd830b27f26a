"""A log that is not where landing left it stops landing, and goes on when a person has said how (check 4)."""

import asyncio
import shutil
from pathlib import Path
from typing import Any

import pytest

from assets.slices.incidents import NotAcceptableError, accept
from assets.slices.losses import Loss, losses
from assets.slices.progress import IncidentError, incidents, landed_ranges
from assets.usage import schema
from assets.usage.landing import USAGE, land
from assets.usage.lineage import LakeBehindError, check
from assets.usage.progress import landed_slice, next_slice
from assets.usage.publish import publish
from assets.usage.rollup import daily, roll_up
from core.contracts.audit import parse
from core.eventlog import open_eventlog
from core.eventlog.api import Slice
from core.eventlog.bulk import read_slice
from core.topology import TOPICS
from quality.gates import complete
from tests.assets.usage.lake import event
from tests.assets.usage.site import Site
from tests.assets.usage.test_purge import fill, go

KEY = "org_a|1"


def ids(site: Site) -> str:
    async def work() -> str:
        async with open_eventlog(site.eventlog, site.database) as log:
            return (await log.topic(schema.TOPIC)).id

    return asyncio.run(work())


def busy(site: Site) -> int:
    """The partition of `KEY`."""
    before = site.bounds()
    site.send([event(9_000)], key=KEY)
    site.carry()
    (partition,) = [p for p, bound in site.bounds().items() if bound.high > before[p].high]
    return partition


def delete_before_landing(site: Site, partition: int, count: int) -> tuple[int, int]:
    """Send records and delete them as retention would; the range that is gone."""
    first = site.bounds()[partition].high
    site.send([event(10_000 + first + number) for number in range(count)], key=KEY)

    async def work() -> None:
        async with open_eventlog(site.eventlog, site.database) as log:
            await log.purge(schema.TOPIC, {partition: first + count})

    asyncio.run(work())
    return first, first + count


def say_yes(site: Site, name: str) -> None:
    accept(
        site.lake(),
        site.eventlog,
        site.database,
        schema.TOPIC,
        USAGE,
        name,
        by="usr_1",
        reason="looked at it",
    )
    publish(site.lake(), site.database)


def audited(site: Site) -> list[tuple[str, str, str]]:
    rows = site.sql("select value from outbox where topic = 'audit.logs' order by id")
    events = [parse(bytes(value)) for (value,) in rows]
    return [
        (each.actor, each.target, each.detail["end"])
        for each in events
        if each.action == "landing.loss_accept"
    ]


def booked(site: Site) -> list[tuple[Any, ...]]:
    return site.sql(
        "select topic_id, partition, first_offset, end_offset, kind, accepted_by from landing_loss order by partition"
    )


def holds(site: Site) -> None:
    """Fates and losses account for every offset below the watermark, and the table has the rows it promises."""
    rows = site.sql(
        "select w.topic_id, w.partition, w.next_offset, "
        "(select coalesce(sum(landed), 0) from usage_conservation c where (c.topic_id, c.partition) = (w.topic_id, w.partition)), "
        "(select coalesce(sum(end_offset - first_offset), 0) from landing_loss l where (l.topic_id, l.partition) = (w.topic_id, w.partition)) "
        "from usage_watermark w"
    )
    assert rows
    assert [row for row in rows if row[2] != row[3] + row[4]] == []
    found = landed_ranges(site.lake(), schema.EVENTS, schema.TOPIC)
    assert found is not None
    assert complete(*found).problems == []


def test_4_a_gap_stops_landing_and_is_named(site: Site) -> None:
    fill(site, slices=1)
    partition, cells = busy(site), site.cells()
    slices = landed_slice(site.lake())
    first, end = delete_before_landing(site, partition, 5)
    with pytest.raises(IncidentError) as raised:
        site.land()
    assert f"(id {ids(site)}), partition {partition}: offsets {first} to {end - 1} are gone" in str(
        raised.value
    )
    assert (landed_slice(site.lake()), site.cells()) == (slices, cells)
    site.send([event(1)], key="org_b|")
    with pytest.raises(IncidentError):
        site.land()
    assert landed_slice(site.lake()) == slices


def test_an_accepted_gap_is_booked_and_landing_goes_on(site: Site) -> None:
    fill(site, slices=1)
    partition = busy(site)
    first, end = delete_before_landing(site, partition, 5)
    (incident,) = incidents(site.lake(), site.eventlog, site.database, schema.TOPIC, schema.EVENTS)
    assert incident.name == f"gap:usage.records:{ids(site)}:{partition}:{first}-{end}"
    for wrong in ("gap:usage.records:x:0:1-2", incident.name.replace(f"-{end}", f"-{end + 1}")):
        with pytest.raises(NotAcceptableError, match=incident.name):
            say_yes(site, wrong)
    assert booked(site) == []
    before = len(audited(site))
    say_yes(site, incident.name)
    assert booked(site) == [(ids(site), partition, first, end, "gap", "usr_1")]
    assert audited(site)[before:] == [("usr_1", f"usage.records:{ids(site)}:{partition}", str(end))]
    assert losses(site.lake().open(schema.EVENTS), ids(site), 4) == [Loss(ids(site), partition, first, end)]
    assert site.sql("select next_offset from usage_watermark where partition = %s", (partition,)) == [(end,)]
    holds(site)
    with pytest.raises(NotAcceptableError):
        say_yes(site, incident.name)
    site.send([event(20_000), event(20_000)], key=KEY)
    assert site.carry() == 1
    holds(site)
    assert go(site).plan.refused == {}
    assert site.bounds()[partition].low == site.bounds()[partition].high


def test_a_second_gap_and_one_over_slices_that_wait(site: Site) -> None:
    """What had landed and was not published yet ends before the gap, and one publication spans it."""
    partition = busy(site)
    site.send([event(1), event(2)], key=KEY)
    assert site.land()
    for _ in range(2):
        delete_before_landing(site, partition, 3)
        (incident,) = incidents(site.lake(), site.eventlog, site.database, schema.TOPIC, schema.EVENTS)
        accept(
            site.lake(),
            site.eventlog,
            site.database,
            schema.TOPIC,
            USAGE,
            incident.name,
            by="usr_1",
            reason="x",
        )
    site.send([event(3)], key=KEY)
    assert site.land()
    site.publish()
    assert len(booked(site)) == 2
    holds(site)
    assert go(site).plan.refused == {}


def test_a_gap_accepted_behind_a_slice_whose_run_died_before_it_published(site: Site) -> None:
    """The acceptance publishes that slice, whose publication then ends behind the gap; the lake is still the same."""
    partition = busy(site)
    site.send([event(1), event(2)], key=KEY)
    assert site.land()
    roll_up(site.lake())
    daily(site.lake())
    delete_before_landing(site, partition, 3)
    (incident,) = incidents(site.lake(), site.eventlog, site.database, schema.TOPIC, schema.EVENTS)
    say_yes(site, incident.name)
    site.send([event(3)], key=KEY)
    assert site.carry() == 1
    holds(site)


def test_a_loss_is_known_again_after_the_database_was_put_back(site: Site) -> None:
    fill(site, slices=1)
    partition = busy(site)
    first, end = delete_before_landing(site, partition, 5)
    (incident,) = incidents(site.lake(), site.eventlog, site.database, schema.TOPIC, schema.EVENTS)
    say_yes(site, incident.name)
    site.sql("delete from landing_loss", owner=True)
    site.sql(
        "update usage_watermark set next_offset = %s where partition = %s", (first, partition), owner=True
    )
    site.send([event(20_000)], key=KEY)
    assert site.carry() == 1
    assert [row[1:4] for row in booked(site)] == [(partition, first, end)]
    holds(site)


def test_4_a_topic_made_anew_stops_landing_until_it_is_accepted(site: Site) -> None:
    fill(site, slices=2)
    old, slices, ends = ids(site), landed_slice(site.lake()), site.bounds()
    site.send([event(30_000)], key=KEY)

    async def anew() -> None:
        async with open_eventlog(site.eventlog, site.database) as log:
            await log.delete_topic(schema.TOPIC)
            await log.ensure_topics([TOPICS[schema.TOPIC]])

    asyncio.run(anew())
    site.send([event(30_000), event(1, tenant="org_a")], key=KEY)
    with pytest.raises(
        IncidentError, match=f"it has id {ids(site)}, the lake was landed from topic id {old}"
    ):
        site.land()
    assert landed_slice(site.lake()) == slices
    (incident,) = incidents(site.lake(), site.eventlog, site.database, schema.TOPIC, schema.EVENTS)
    say_yes(site, incident.name)
    assert booked(site) == [(old, p, bound.high, None, "recreated", "usr_1") for p, bound in ends.items()]
    assert site.carry() == 1
    fates = site.sql(
        "select sum(counted), sum(duplicates) from usage_conservation where topic_id = %s", (ids(site),)
    )
    assert fates == [(1, 1)], "what had landed from the old topic is known in the new one"
    holds(site)
    assert go(site).plan.refused == {}


def test_4_a_log_put_back_to_an_earlier_time_cannot_be_accepted(local_site: Site) -> None:
    site = local_site
    fill(site, slices=1)
    partition = busy(site)
    site.sql(
        "update eventlog.partition set high = high - 1, low = least(low, high - 1) where partition = %s",
        (partition,),
    )
    (incident,) = incidents(site.lake(), site.eventlog, site.database, schema.TOPIC, schema.EVENTS)
    assert "it was put back to an earlier time" in str(incident)
    with pytest.raises(NotAcceptableError, match="delete the topic"):
        say_yes(site, incident.name)
    assert booked(site) == []


def test_a_lake_put_back_is_recognised_before_anything_lands(local_site: Site, tmp_path: Path) -> None:
    site = local_site
    fill(site, slices=1)
    shutil.copytree(tmp_path / "lake", tmp_path / "then")
    fill(site, slices=2, first=50)
    put_back(tmp_path)
    site.send([event(40_000)], key=KEY)
    with pytest.raises(LakeBehindError, match="slice 3 is published, the lake ends at slice 1"):
        site.land()
    assert landed_slice(site.lake()) == 1


def test_a_lake_put_back_is_recognised_when_other_slices_have_passed(
    local_site: Site, tmp_path: Path
) -> None:
    """Somebody landed by hand what the sensor refuses: more slices than were published, cut elsewhere."""
    site = local_site
    fill(site, slices=1)
    shutil.copytree(tmp_path / "lake", tmp_path / "then")
    fill(site, slices=2, first=50)
    cells = site.cells()
    put_back(tmp_path)
    while (
        piece := next_slice(site.lake(), site.eventlog, site.database, schema.TOPIC, schema.EVENTS, most=4)
    ) is not None:
        batches = read_slice(site.eventlog, site.database, piece, headers=False)
        land(site.lake(), tmp_path / "index", piece, batches)
    lake = site.lake()
    assert landed_slice(lake) > 3
    roll_up(lake)
    daily(lake)
    with pytest.raises(LakeBehindError, match="slice 3 of the lake is not the one that was published"):
        check(lake, site.database)
    with pytest.raises(LakeBehindError, match="slice 3 of the lake is not the one that was published"):
        publish(lake, site.database)
    assert site.cells() == cells


def put_back(folder: Path) -> None:
    shutil.rmtree(folder / "lake")
    shutil.copytree(folder / "then", folder / "lake")


def test_a_slice_is_asked_for_behind_the_gap_only(site: Site) -> None:
    """A run that was asked for before the gap was accepted brings the old range, and lands nothing."""
    partition = busy(site)
    first, end = delete_before_landing(site, partition, 3)
    (incident,) = incidents(site.lake(), site.eventlog, site.database, schema.TOPIC, schema.EVENTS)
    say_yes(site, incident.name)
    stale = Slice(schema.TOPIC, ids(site), {partition: (first, end)})
    assert land(site.lake(), site.state / "index", stale, iter([])).already
