"""Generated records with everything that goes wrong in streams, against a plain reading of them (check 1).

`headrace drill conservation` is the same with a million.
"""

import sys
from collections import Counter
from datetime import UTC, datetime
from pathlib import Path

import pytest

from core.settings import DatabaseSettings, EventLogSettings, ObjectSettings
from deploy.drill import records
from deploy.drill.conservation import FATES, carry_out, compare, of_size
from deploy.drill.records import Truth
from deploy.drill.usage import Stand

COUNT = 50_000
TENTH = 0.1


@pytest.mark.timeout(600)
def test_1_every_record_has_the_fate_that_a_plain_reading_gives_it(
    postgres: DatabaseSettings, eventlog_settings: EventLogSettings, tmp_path: Path
) -> None:
    objects = ObjectSettings(objects_url=(tmp_path / "objects").as_uri())
    check(Stand(postgres, eventlog_settings, objects, tmp_path), COUNT)


@pytest.mark.timeout(600)
def test_1_every_record_has_the_fate_that_a_plain_reading_gives_it_on_kafka_and_minio(
    postgres: DatabaseSettings, kafka: EventLogSettings, minio: ObjectSettings, tmp_path: Path
) -> None:
    objects = minio.model_copy(update={"objects_bucket_prefix": "oracle-"})
    check(Stand(postgres, kafka, objects, tmp_path), COUNT // 5)


def check(plain: Stand, count: int) -> None:
    try:
        compared(of_size(plain, count), count)
    finally:
        plain.reset()


def compared(stand: Stand, count: int) -> None:
    found = carry_out(stand, count, seed=3, say=lambda _: None)
    sys.stdout.write(f"check 1: {found}\n")
    assert sum(found["fates"].values()) == count
    assert (found["partitions"], found["tenants"]) == (6, 12)
    for fate, part in (("duplicates", records.DOUBLE), ("rejected", records.MALFORMED)):  # fmt: skip
        assert found["fates"][fate] == pytest.approx(count * part, rel=TENTH), fate
    assert found["late"] == pytest.approx(count * records.LATE, rel=TENTH)
    assert found["listed"] == found["fates"]["rejected"] + found["fates"]["quarantined"]
    assert differs_when_changed(stand)


def differs_when_changed(stand: Stand) -> bool:
    """The comparison is red for each thing that it compares."""
    nothing = Truth()
    kinds = {problem.split()[0] for problem in compare(stand, nothing) if " " in problem}
    return {"fate", "hourly", "record"} <= kinds


def test_the_stream_is_what_it_says_it_is() -> None:
    """The plain reading, given the stream alone, finds the parts that it was made of."""
    now, count = datetime(2026, 6, 1, 12, tzinfo=UTC), 20_000
    made = list(records.stream(7, count, now))
    assert made == list(records.stream(7, count, now))
    received = int(now.timestamp() * 1000)
    truth = Truth()
    assert truth.read(0, ((at, key, value, received) for at, (key, value) in enumerate(made))) == count
    fates: Counter[str] = Counter()
    for (_, _, fate), number in truth.fates.items():
        fates[fate] += number
    assert set(fates) == set(FATES)
    assert fates["rejected"] == int(count * records.MALFORMED)
    contradicting = int(count * records.CONFLICT) + int(count * records.BEYOND)
    # Where the other content comes first, what repeats the event contradicts it too.
    assert contradicting <= fates["quarantined"] < 2 * contradicting
    assert fates["duplicates"] + fates["quarantined"] == contradicting + int(count * records.DOUBLE)
    assert sum(events for _, events in truth.hours.values()) == fates["counted"]
    assert sum(units for units, _ in truth.hours.values()) == sum(units for units, _ in truth.days().values())
