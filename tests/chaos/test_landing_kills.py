"""Workers die by SIGKILL at every named point and at random moments; what comes out is what a calm one makes
(check 2).

The command `headrace drill usage` is the same with a hundred random kills.
"""

import json
import uuid
from collections import Counter
from datetime import UTC, datetime, timedelta
from pathlib import Path

import polars as pl
import pytest

from assets.usage import schema
from core.crash import Point
from core.eventlog.api import NewRecord
from core.settings import DatabaseSettings, EventLogSettings, ObjectSettings
from deploy.drill.stream import stream
from deploy.drill.usage import LANDS, Stand, carry_out

KILLS = 10
BILLERS = {Point.ADJUSTING}
"""Points that billers die at, not workers."""


def check(calm: Stand, storm: Stand) -> None:
    report = carry_out(calm, storm, kills=KILLS, seed=11, say=print)
    assert report["storm"] == report["calm"], report
    assert [done["point"] for done in report["points"]] == list(LANDS)
    assert report["random_kills"] >= KILLS
    assert report["billing_kills"] > 1
    assert report["invoices"] == {"service_period": 3, "late_usage": 3}
    assert report["purges"]["done"] > len(LANDS)
    assert report["files_put_together"] > 1
    fates, records = fates_of(calm), report["records"]
    assert fates.total() == records
    assert fates == fates_of(storm)
    assert min(fates.values()) > 0
    storm.reset()


def fates_of(stand: Stand) -> Counter[str]:
    handle = stand.lake().open(schema.EVENTS)
    assert handle is not None
    rows = pl.DataFrame(handle.to_pyarrow_table())
    counted = rows.filter(fate="counted")
    assert counted["identity"].n_unique() == len(counted)
    return Counter(dict(rows["fate"].value_counts().iter_rows()))


@pytest.mark.timeout(1200)  # seventy processes, one after the other
def test_2_kills_change_nothing(
    postgres: DatabaseSettings, eventlog_settings: EventLogSettings, tmp_path: Path
) -> None:
    calm, storm = (
        Stand(postgres, eventlog_settings, ObjectSettings(objects_url=(tmp_path / name / "objects").as_uri()), tmp_path / name)
        for name in ("calm", "storm")
    )  # fmt: skip
    check(calm, storm)


@pytest.mark.timeout(1200)
def test_2_kills_change_nothing_on_kafka_and_minio(
    postgres: DatabaseSettings, kafka: EventLogSettings, minio: ObjectSettings, tmp_path: Path
) -> None:
    prefix = uuid.uuid4().hex[:8]
    calm, storm = (
        Stand(postgres, kafka, minio.model_copy(update={"objects_bucket_prefix": f"{name}{prefix}-"}), tmp_path / name)
        for name in ("calm", "storm")
    )  # fmt: skip
    check(calm, storm)


def test_every_point_is_gone_through() -> None:
    assert set(Point) - set(LANDS) == BILLERS


def test_fates_of_a_calm_run_are_those_of_a_plain_reading(
    postgres: DatabaseSettings, eventlog_settings: EventLogSettings, tmp_path: Path
) -> None:
    records = stream(seed=5, count=1_500)
    objects = ObjectSettings(objects_url=(tmp_path / "objects").as_uri())
    stand = Stand(postgres, eventlog_settings, objects, tmp_path)
    stand.reset()
    stand.send(records)
    stand.calm()
    handle = stand.lake().open(schema.EVENTS)
    assert handle is not None
    rows = pl.DataFrame(handle.to_pyarrow_table())
    found = {(tenant, fate): count for tenant, fate, count in rows.group_by("tenant", "fate").len().rows()}
    assert found == plain_reading(records)
    stand.reset()


def plain_reading(records: list[NewRecord]) -> Counter[tuple[str, str]]:
    """Fate of every record, by tenant: copies of an event share a key, so their order is that of the stream."""
    first: dict[tuple[str, str], bytes] = {}
    voided: set[tuple[str, str]] = set()
    fates: Counter[tuple[str, str]] = Counter()
    oldest = datetime.now(UTC) - timedelta(days=450)
    for record in records:
        tenant = record.key.decode().split("|")[0]
        try:
            event = json.loads(record.value)
        except ValueError:
            fates[tenant, "rejected"] += 1
            continue
        if event["type"] == "headrace.usage.void.v1":
            named = (tenant, event["data"]["id"])
            if named in first:
                fates[tenant, "duplicate" if named in voided else "counted"] += 1
                voided.add(named)
            else:
                fates[tenant, "quarantined"] += 1
            continue
        known = first.get((tenant, event["id"]))
        if datetime.fromisoformat(event["time"]) < oldest:
            fates[tenant, "quarantined"] += 1
        elif known is None:
            first[tenant, event["id"]] = record.value
            fates[tenant, "counted"] += 1
        else:
            fates[tenant, "duplicate" if known == record.value else "quarantined"] += 1
    return fates
