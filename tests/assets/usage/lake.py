"""What the tests of the usage assets share: records as a producer writes them, and a lake on a folder."""

from collections.abc import Iterable, Sequence
from datetime import UTC, datetime, timedelta
from pathlib import Path

from assets.usage.imports import Import
from core.contracts.usage import UsageData, UsageEvent
from core.eventlog.api import Record, Slice
from core.lake import Lake
from core.settings import ObjectSettings

TOPIC_ID = "7b6c9f1e-0000-7000-8000-000000000001"
NOW = datetime(2026, 6, 1, 12, 0, tzinfo=UTC)


def imports(wanted: Sequence[tuple[str, str]]) -> list[Import]:
    """`imp_1` of the organisation `org_a`: its source `s`, before `NOW`."""
    declared = ("org_a", "imp_1", "s", NOW - timedelta(days=3650), NOW)
    return [declared] if declared[:2] in wanted else []


def local_lake(folder: Path) -> Lake:
    return Lake(ObjectSettings(objects_url=f"file://{folder}"))


def event(
    number: int, *, quantity: str = "5", tenant: str = "org_a", minutes: int = 0, importid: str = ""
) -> bytes:
    return UsageEvent(
        id=f"e{number}", source="s", time=NOW + timedelta(minutes=minutes), tenant=tenant, type="headrace.usage.v1",
        specversion="1.0", data=UsageData("llm.tokens.input", quantity, {"model": "m"} if number % 2 else {}), importid=importid,
    ).encode()  # fmt: skip


def records(
    values: Iterable[bytes], *, partition: int = 0, start: int = 0, tenant: str = "org_a"
) -> list[Record]:
    key = f"{tenant}|".encode()
    received = int(NOW.timestamp() * 1000)
    return [
        Record("usage.records", partition, start + position, key, value, received)
        for position, value in enumerate(values)
    ]


def slice_of(*batches: list[Record], topic_id: str = TOPIC_ID) -> Slice:
    return Slice(
        "usage.records",
        topic_id,
        {batch[0].partition: (batch[0].offset, batch[-1].offset + 1) for batch in batches},
    )
