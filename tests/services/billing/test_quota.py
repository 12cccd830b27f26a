"""GET /api/v1/usage: cells and tail are one number, at every state of either."""

import asyncio
from collections.abc import Awaitable, Callable
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest

from core.clock import now, rfc3339
from core.contracts.usage import UsageEvent
from core.database import Database
from core.eventlog.api import EventLog, NewRecord
from core.ids import new_id
from core.topology import TOPICS
from services.common.principal import Principal
from tests.services.billing.conftest import TOPIC, Caller, record_of, usage_event
from tests.services.billing.published import publish

INPUT = "llm.tokens.input"


async def until(
    ask: Callable[[], Awaitable[Any]], true: Callable[[Any], bool], *, seconds: float = 10
) -> Any:
    """The first answer for which `true` holds; the last one after `seconds`, for the assertion to show."""
    answer = await ask()
    for _ in range(int(seconds / 0.05)):
        if true(answer):
            break
        await asyncio.sleep(0.05)
        answer = await ask()
    return answer


async def live_usage(caller: Caller, quantity: str, **params: str) -> Any:
    """The usage document once it shows `quantity` of input tokens."""

    def shows(answer: Any) -> bool:
        return bool(answer["live"]) and answer["quantities"].get(INPUT) == quantity

    answer = await until(lambda: caller.ask("/api/v1/usage", **params), shows)
    assert shows(answer), answer
    return answer


async def ends(log: EventLog) -> dict[int, int]:
    return {partition: bounds.high for partition, bounds in (await log.bounds(TOPIC)).items()}


async def land(log: EventLog, system: Database, counted: list[UsageEvent]) -> int:
    """Publish `counted` as all there is of their tenant, with everything in the topic landed."""
    topic = await log.topic(TOPIC)
    return await publish(system, topic_id=topic.id, counted=counted, watermark=await ends(log))


async def test_a_fresh_event_is_seen_and_stays_once_when_it_lands(
    acme: Caller, other: Caller, log: EventLog, system_database: Database
) -> None:
    events = [
        usage_event(acme.tenant, quantity="2.5", subject=f"cus_{n}", dimensions={"model": "m"})
        for n in range(8)
    ]
    await log.append([record_of(event) for event in events])
    before = await live_usage(acme, "20")
    assert before["data"] == [
        {"meter": INPUT, "unit": "token", "quantity": "20", "events": 8},
    ]
    assert before["as_of"]["offsets"] == {str(p): end for p, end in (await ends(log)).items()}

    version = await land(log, system_database, events)
    landed = await live_usage(acme, "20")
    assert landed["lake_version"] == version

    more = usage_event(acme.tenant, quantity="0.000000001")
    await log.append([record_of(more)])
    await live_usage(acme, "20.000000001")
    assert (await other.ask("/api/v1/usage"))["quantities"] == {}


async def test_what_the_slice_will_not_count_is_not_counted_now(acme: Caller, log: EventLog) -> None:
    good = usage_event(acme.tenant, quantity="7")
    conflict = usage_event(acme.tenant, id=good.id, quantity="8")
    too_old = usage_event(acme.tenant, time=now() - timedelta(days=500))
    imported = usage_event(acme.tenant, time=now() - timedelta(days=500), importid="imp_1", quantity="3")
    unreadable = [NewRecord(TOPIC, good.key, value) for value in (b"", b"{", b"\xff", b'{"id": 1}')]
    sent = [record_of(event) for event in (good, good, conflict, too_old, imported)]
    await log.append([*sent, *unreadable])
    answer = await live_usage(acme, "10")
    assert answer["data"][0]["events"] == 2


async def test_a_repetition_of_what_landed_is_not_counted_again(
    acme: Caller, log: EventLog, system_database: Database
) -> None:
    event = usage_event(acme.tenant, quantity="5")
    await log.append([record_of(event)])
    await live_usage(acme, "5")
    await land(log, system_database, [event])
    await live_usage(acme, "5")
    marker = usage_event(acme.tenant, quantity="1")
    await log.append([record_of(event), record_of(marker)])
    await live_usage(acme, "6")


async def test_cells_of_hours_and_days_have_both_halves(
    acme: Caller, log: EventLog, system_database: Database
) -> None:
    today = now().replace(hour=0, minute=0, second=0, microsecond=0)
    yesterday = today - timedelta(days=1)
    old = [
        usage_event(acme.tenant, time=yesterday + timedelta(hours=3, minutes=59), quantity="1"),
        usage_event(
            acme.tenant, time=yesterday + timedelta(hours=4), quantity="2", dimensions={"model": "m"}
        ),
    ]
    fresh = [
        usage_event(acme.tenant, time=yesterday + timedelta(hours=4, minutes=1), quantity="4"),
        usage_event(acme.tenant, time=yesterday + timedelta(hours=3, minutes=1), quantity="8"),
        usage_event(
            acme.tenant, time=yesterday + timedelta(hours=3), meter="llm.tokens.output", quantity="9"
        ),
    ]
    await log.append([record_of(event) for event in old])
    await live_usage(acme, "3")
    await land(log, system_database, old)
    await log.append([record_of(event) for event in fresh])
    await live_usage(acme, "15")

    def cell(hours: int, quantity: str, events: int, meter: str = INPUT, **dimensions: str) -> dict[str, Any]:
        start = yesterday + timedelta(hours=hours)
        return {
            "meter": meter, "unit": "token", "quantity": quantity, "events": events, "dimensions": dimensions,
            "period_start": rfc3339(start), "period_end": rfc3339(start + timedelta(hours=1)),
        }  # fmt: skip

    hours = await acme.ask("/api/v1/usage", grain="hour")
    assert hours["data"] == [
        cell(3, "9", 2),
        cell(3, "9", 1, "llm.tokens.output"),
        cell(4, "4", 1),
        cell(4, "2", 1, model="m"),
    ]
    days = await acme.ask("/api/v1/usage", grain="day", meter=INPUT)
    assert [(one["quantity"], one["dimensions"], one["period_start"]) for one in days["data"]] == [
        ("13", {}, rfc3339(yesterday)),
        ("2", {"model": "m"}, rfc3339(yesterday)),
    ]
    window = {"from": rfc3339(yesterday + timedelta(hours=4, minutes=30)), "to": rfc3339(today)}
    part = await acme.ask("/api/v1/usage", **window)
    assert part["quantities"] == {INPUT: "6"}
    assert part["from"] == rfc3339(yesterday + timedelta(hours=4)), "widened to the full hour, and said so"
    empty = await acme.ask(
        "/api/v1/usage", **{"from": rfc3339(today), "to": rfc3339(today + timedelta(days=1))}
    )
    assert empty["quantities"] == {}


async def test_a_publication_beyond_what_was_read_is_taken_over(
    acme: Caller, log: EventLog, system_database: Database
) -> None:
    """Records the tail has not seen yet land: the answer is right in the very request that finds out."""
    events = [usage_event(acme.tenant, quantity="1", subject=f"cus_{n % 5}") for n in range(500)]
    await log.append([record_of(event) for event in events])
    await land(log, system_database, events)
    answer = await acme.ask("/api/v1/usage")
    assert answer["quantities"] == {INPUT: "500"}


async def test_answers_never_lose_or_double_a_range_while_cells_move(
    acme: Caller, log: EventLog, system_database: Database
) -> None:
    """Only ever grows, by whole events, while slices land under concurrent questions."""
    sent: list[UsageEvent] = []
    done = asyncio.Event()

    async def feed() -> None:
        for _ in range(12):
            batch = [usage_event(acme.tenant, subject=f"cus_{n % 9}") for n in range(150)]
            sent.extend(batch)
            await log.append([record_of(event) for event in batch])
            await land(log, system_database, sent)
            await asyncio.sleep(0.05)
        done.set()

    async def watch() -> None:
        seen = 0
        while not done.is_set():
            answer = await acme.ask("/api/v1/usage")
            total = int(answer["quantities"].get(INPUT, "0"))
            assert seen <= total <= 1800
            seen = total

    await asyncio.gather(feed(), watch(), watch(), watch())
    await live_usage(acme, "1800")


async def test_a_topic_made_anew_is_followed_from_its_start(
    acme: Caller, log: EventLog, system_database: Database
) -> None:
    event = usage_event(acme.tenant, quantity="2")
    await log.append([record_of(event)])
    await live_usage(acme, "2")
    await land(log, system_database, [event])
    old_id = (await log.topic(TOPIC)).id
    await log.delete_topic(TOPIC)
    await log.ensure_topics([TOPICS[TOPIC]])
    await log.append([record_of(usage_event(acme.tenant, quantity="3"))])
    answer = await live_usage(acme, "5")
    assert answer["as_of"]["topic_id"] not in ("", old_id)


async def test_purged_records_are_read_again_from_the_watermark(
    acme: Caller, log: EventLog, system_database: Database
) -> None:
    event = usage_event(acme.tenant, quantity="2")
    await log.append([record_of(event)])
    await live_usage(acme, "2")
    await land(log, system_database, [event])
    await log.purge(TOPIC, await ends(log))
    await log.append([record_of(usage_event(acme.tenant, quantity="3"))])
    await live_usage(acme, "5")


@pytest.mark.parametrize(
    ("params", "code"),
    [
        ({"meter": "llm.tokens"}, "unknown_meter"),
        ({"from": "2026-01-01T00:00:00"}, "invalid_request"),
        ({"from": "soon"}, "invalid_request"),
        ({"grain": "minute"}, "invalid_request"),
        ({"from": "2026-01-02T00:00:00Z", "to": "2026-01-01T00:00:00Z"}, "invalid_request"),
        ({"from": "2026-01-02T00:00:00Z", "to": "2026-01-02T00:00:00Z"}, "invalid_request"),
        ({"to": "9999-12-31T23:59:59Z"}, "invalid_request"),
        ({"from": "0001-01-01T00:00:00+14:00"}, "invalid_request"),
        ({"form": "2026-01-01T00:00:00Z"}, "unknown_parameter"),
    ],
)
async def test_a_question_that_makes_no_sense_is_refused(
    acme: Caller, params: dict[str, str], code: str
) -> None:
    answer = await acme.get("/api/v1/usage", **params)
    assert (answer.status, answer.json["code"]) == (422, code)


async def test_another_tenants_usage_is_not_there(
    acme: Caller, other: Caller, owner: Caller, log: EventLog
) -> None:
    await log.append([record_of(usage_event(acme.tenant, quantity="4"))])
    await live_usage(acme, "4")
    slug = acme.tenant.replace("_", "-")
    for name in (acme.tenant, slug):
        assert (await acme.ask("/api/v1/usage", tenant=name))["quantities"] == {INPUT: "4"}
        assert (await owner.ask("/api/v1/usage", tenant=name))["quantities"] == {INPUT: "4"}
        assert (await other.get("/api/v1/usage", tenant=name)).status == 404
    for name in (new_id("org"), "nobody", "", "%00", "' or true --"):
        assert (await other.get("/api/v1/usage", tenant=name)).status == 404
        assert (await owner.get("/api/v1/usage", tenant=name)).status == 404


async def test_somebody_without_an_organisation_must_name_one(acme: Caller) -> None:
    nobody = Principal(tenant_id="", subject="usr_1", kind="user", scopes=acme.principal.scopes)
    answer = await acme.acting_as(nobody).get("/api/v1/usage")
    assert (answer.status, answer.json["code"]) == (422, "tenant_required")


async def test_times_are_those_of_the_event_not_of_the_machine(acme: Caller, log: EventLog) -> None:
    event = usage_event(acme.tenant, time=datetime(2026, 1, 1, 1, 30, tzinfo=UTC), importid="imp_1")
    await log.append([record_of(event)])
    await live_usage(acme, "1")
    (cell,) = (await acme.ask("/api/v1/usage", grain="hour"))["data"]
    assert cell["period_start"] == "2026-01-01T01:00:00.000Z"
