"""When a topic's sensor asks for a run."""

import asyncio
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import dagster as dg
import pytest

from assets.resources import Platform
from assets.usage.landing import land
from core.eventlog import open_eventlog
from core.eventlog.api import NewRecord, Slice
from core.eventlog.bulk import read_slice
from core.settings import DatabaseSettings
from core.topology import TOPICS
from pipelines.definitions import defs
from sensors.slices import AUDIT, TOPIC_TAG, USAGE, Asked, Edge, decide, is_due, next_attempt, see, slice_name
from tests.assets.usage.lake import event
from tests.assets.usage.test_publish import TABLES, query

PIECE = Slice("usage.records", "id", {1: (5, 9), 0: (7, 8)})


def asked_keys(result: dg.SensorResult) -> list[str | None]:
    return [request.run_key for request in result.run_requests or []]


def test_a_slice_is_named_by_where_it_starts() -> None:
    assert (
        slice_name(PIECE, "") == slice_name(replace(PIECE, ranges={0: (7, 99), 1: (5, 6)}), "") == "0:7,1:5"
    )
    assert slice_name(None, "finish:3:2") == "finish:3:2"


def test_a_failed_slice_is_asked_for_again_ever_more_slowly() -> None:
    asked, now, pauses = Asked(), 1000.0, []
    for _ in range(9):
        attempt = next_attempt(asked, "0:7", now)
        assert attempt is not None
        asked, pause = attempt, 0.0
        while next_attempt(asked, "0:7", now + pause) is None:
            pause += 5
        pauses.append(pause)
        now += pause
    assert pauses == [5, 10, 20, 40, 80, 160, 300, 300, 300]
    assert asked.attempt == 9
    fresh = next_attempt(asked, "0:8", now)
    assert fresh is not None
    assert (fresh.key, fresh.attempt, fresh.at) == ("0:8", 1, now)


def test_what_is_not_urgent_waits_for_company() -> None:
    edge = replace(AUDIT, patience=30, enough=1000)
    assert [is_due(edge, records, waited) for records, waited in [(999, 29.9), (1000, 0), (1, 30), (0, 0)]] == [
        False, True, True, True,
    ]  # fmt: skip
    assert is_due(USAGE, 1, 0)


def test_waiting_is_counted_from_the_first_record_of_any_partition() -> None:
    first = see(Asked(), "0:7", 100)
    later = see(see(first, "0:7", 110), "0:7,1:5", 120)
    assert (first.since, later.since, later.waiting) == (100, 100, "0:7,1:5")
    assert see(later, "0:9", 130).since == 130


def test_the_cursor_says_since_when_and_what_was_asked() -> None:
    edge = Edge("s", "audit.logs", "audit_events", "audit_slice", 15, patience=30, enough=1000)
    waiting = decide(edge, PIECE, "", Asked(), 100)
    assert waiting.skip_reason is not None
    assert "5 records wait" in str(waiting.skip_reason.skip_message)
    due = decide(edge, PIECE, "", Asked.read(waiting.cursor), 131)
    assert asked_keys(due) == ["audit.logs:id:0:7,1:5:1:131"]
    again = decide(edge, PIECE, "", Asked.read(due.cursor), 132)
    assert asked_keys(again) == []
    retried = decide(edge, PIECE, "", Asked.read(again.cursor), 137)
    assert asked_keys(retried) == ["audit.logs:id:0:7,1:5:2:137"]


def test_a_run_carries_the_slice() -> None:
    (request,) = decide(USAGE, PIECE, "", Asked(), 1).run_requests or []
    assert request.run_config == {
        "ops": {"usage_events": {"config": {"topic_id": "id", "ranges": {"1": [5, 9], "0": [7, 8]}}}}
    }
    assert request.tags["headrace/records"] == "5"


@pytest.fixture
def platform(
    postgres: DatabaseSettings, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Iterator[Platform]:
    """An installation with an empty log, lake and publications, told to Dagster as it always is: by the environment."""
    values = {f"HEADRACE_{name.upper()}": value for name, value in postgres.model_dump().items() if value}
    values |= {
        "HEADRACE_EVENTLOG_URL": "postgresql:",
        "HEADRACE_OBJECTS_URL": f"file://{tmp_path}/objects",
        "HEADRACE_STATE_DIR": str(tmp_path / "state"),
    }
    for name, value in values.items():
        monkeypatch.setenv(name, secret(value))
    platform = Platform()
    asyncio.run(begin_anew(platform))
    query(postgres, f"truncate {', '.join(TABLES)}")
    yield platform
    asyncio.run(begin_anew(platform))


def secret(value: object) -> str:
    return value.get_secret_value() if hasattr(value, "get_secret_value") else str(value)


async def begin_anew(platform: Platform) -> None:
    """An empty topic, whatever other tests of this session wrote; and one for those that follow."""
    async with open_eventlog(platform.eventlog, platform.database) as log:
        topics = [TOPICS["usage.records"]]
        await log.ensure_topics(topics)
        await log.delete_topic("usage.records")
        await log.ensure_topics(topics)


async def send(platform: Platform, *values: bytes) -> None:
    async with open_eventlog(platform.eventlog, platform.database) as log:
        await log.ensure_topics([TOPICS["usage.records"]])
        await log.append([NewRecord("usage.records", b"org_a|", value) for value in values])


def tick(
    platform: Platform, instance: dg.DagsterInstance, cursor: str | None
) -> dg.SensorResult | dg.SkipReason:
    sensor = defs.get_repository_def().get_sensor_def("usage_records_slices")
    with dg.build_sensor_context(
        instance=instance, cursor=cursor, resources={"platform": platform}
    ) as context:
        result = sensor(context)
    assert isinstance(result, dg.SensorResult | dg.SkipReason)
    return result


def test_the_sensor_against_a_real_log_lake_and_instance(platform: Platform) -> None:
    asyncio.run(send(platform))
    with dg.DagsterInstance.ephemeral() as instance:
        idle = tick(platform, instance, None)
        assert isinstance(idle, dg.SkipReason)
        assert idle.skip_message == "everything has landed"

        asyncio.run(send(platform, event(1), event(2)))
        first = tick(platform, instance, None)
        assert isinstance(first, dg.SensorResult)
        (request,) = first.run_requests or []

        run = instance.create_run_for_job(
            defs.resolve_job_def("usage_slice"),
            tags={TOPIC_TAG: "usage.records"},
            status=dg.DagsterRunStatus.STARTED,
        )
        busy = tick(platform, instance, first.cursor)
        assert isinstance(busy, dg.SkipReason)
        assert busy.skip_message == f"run {run.run_id} is under way"

        config = request.run_config["ops"]["usage_events"]["config"]
        ranges = {int(p): (start, end) for p, (start, end) in config["ranges"].items()}
        piece = Slice("usage.records", config["topic_id"], ranges)
        batches = read_slice(platform.eventlog, platform.database, piece)
        assert land(platform.lake(), platform.state / "index", piece, batches).rows == 2

        instance.report_run_failed(run)
        owed = tick(platform, instance, first.cursor)
        assert isinstance(owed, dg.SensorResult)
        (finish,) = owed.run_requests or []
        assert finish.run_config["ops"]["usage_events"]["config"]["ranges"] == {}
        assert finish.run_key is not None
        assert ":finish:1:0:1:" in finish.run_key
