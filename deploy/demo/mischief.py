"""What a careless or broken sender does: events that the API must refuse, records that must land as bad."""

from collections.abc import Sequence
from datetime import UTC, datetime, timedelta

import msgspec

from core.clock import rfc3339
from core.contracts.usage import UsageData, UsageEvent
from core.eventlog.api import NewRecord

TOPIC = "usage.records"


def refused_events(tenant: str, source: str) -> list[tuple[dict[str, object], str]]:
    """Events of a readable batch that the API refuses, each with the code of its verdict."""
    good: dict[str, object] = {
        "specversion": "1.0",
        "type": "headrace.usage.v1",
        "id": "refused",
        "source": source,
        "time": rfc3339(datetime.now(UTC)),
        "tenant": tenant,
        "data": {"meter": "llm.tokens.input", "quantity": "1"},
    }
    return [
        (good | {"data": {"meter": "llm.tokens.imagined", "quantity": "1"}}, "unknown_meter"),
        (good | {"data": {"meter": "llm.tokens.input", "quantity": "-1"}}, "quantity"),
        (good | {"data": {"meter": "llm.tokens.input", "quantity": "1e3"}}, "quantity"),
        (good | {"data": {"meter": "llm.tokens.input", "quantity": 1}}, "schema"),
        (good | {"time": "2026-01-01T00:00:00"}, "schema"),
        (good | {"colour": "blue"}, "schema"),
        ({name: value for name, value in good.items() if name != "id"}, "schema"),
        (good | {"time": rfc3339(datetime.now(UTC) + timedelta(hours=1))}, "time_out_of_limits"),
        (good | {"time": "2010-01-01T00:00:00.000Z"}, "time_out_of_limits"),
        (good | {"tenant": "org_somebody_else"}, "foreign_tenant"),
    ]


def unreadable_records(tenant: str, source: str) -> list[NewRecord]:
    """Records that land as rejected."""
    key = f"{tenant}|".encode()
    event = UsageEvent(
        id="rejected", source=source, time=datetime.now(UTC), tenant=tenant, type="headrace.usage.v1",
        specversion="1.0", data=UsageData("llm.tokens.input", "1"),
    )  # fmt: skip
    values = (
        b"",
        b"not json",
        b"\xff\xfe\x00",
        b"[" * 100_000,
        b'{"specversion":"1.0"}',
        event.encode() + event.encode(),
        msgspec.structs.replace(event, data=UsageData("llm.tokens.imagined", "1")).encode(),
        msgspec.structs.replace(event, data=UsageData("llm.tokens.input", "NaN")).encode(),
        msgspec.structs.replace(event, data=UsageData("llm.tokens.input", "1" * 31)).encode(),
    )
    return [NewRecord(TOPIC, key, value) for value in values]


def conflicting_records(originals: Sequence[UsageEvent]) -> list[NewRecord]:
    """The same identities with other content, which land as quarantined."""
    return [
        NewRecord(
            TOPIC,
            event.key,
            msgspec.structs.replace(
                event, data=msgspec.structs.replace(event.data, quantity=event.data.quantity + ".5")
            ).encode(),
        )
        for event in originals
    ]


def ancient_records(tenant: str, source: str) -> list[NewRecord]:
    """Live events far outside the limits of time, which land as quarantined."""
    event = UsageEvent(
        id="ancient", source=source, time=datetime(2010, 1, 1, tzinfo=UTC), tenant=tenant, type="headrace.usage.v1",
        specversion="1.0", data=UsageData("llm.tokens.input", "1000000"),
    )  # fmt: skip
    return [
        NewRecord(TOPIC, event.key, moment.encode())
        for moment in (
            event,
            msgspec.structs.replace(event, id="future", time=datetime.now(UTC) + timedelta(days=30)),
        )
    ]
