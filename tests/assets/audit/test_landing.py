"""Audit records land by the slice machinery of usage, with what is different: no limit of time, identity by id."""

from collections.abc import Iterable
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import polars as pl
import pytest

from assets.audit.landing import land
from assets.audit.schema import EVENTS
from assets.audit.transform import parse_records
from core.contracts.audit import AuditEvent
from core.eventlog.api import Record, Slice
from tests.assets.usage.lake import local_lake

ORGANISATION = "org_01890a5d-ac96-774b-bcce-b302099a8057"
LONG_AGO = datetime(2001, 2, 3, 4, 5, 6, 789, UTC)


def event(number: int, **changes: Any) -> bytes:
    fields: dict[str, Any] = {
        "id": f"aud_01890a5d-ac96-774b-bcce-{number:012d}",
        "time": LONG_AGO,
        "tenant": ORGANISATION,
        "actor": "usr_1",
        "action": "api_key.create",
        "target": "key_1",
        "outcome": "success",
        "schema": "headrace.audit.v1",
        "detail": {"scopes": "usage:write", "count": "2"},
    }
    return AuditEvent(**fields | changes).encode()


def records(values: Iterable[bytes], *, partition: int = 0, start: int = 0) -> list[Record]:
    return [
        Record("audit.logs", partition, start + n, ORGANISATION.encode(), value, 1_780_000_000_000 + n)
        for n, value in enumerate(values)
    ]


def put(folder: Path, *batches: list[Record]) -> pl.DataFrame:
    lake = local_lake(folder)
    ranges = {batch[0].partition: (batch[0].offset, batch[-1].offset + 1) for batch in batches}
    land(lake, folder / "index", Slice("audit.logs", "topic-1", ranges), batches)
    handle = lake.open(EVENTS)
    assert handle is not None
    return pl.DataFrame(handle.to_pyarrow_table()).sort("partition", "offset")


def test_each_record_has_its_fate(tmp_path: Path) -> None:
    put(tmp_path, records([event(1), b"{not json", event(2)], partition=1), records([event(3)]))
    second = [event(2), event(1, outcome="denied"), b'{"schema": "headrace.audit.v1"}']
    frame = put(tmp_path, records(second, partition=1, start=3))
    assert frame.select("partition", "offset", "fate", "code", "winner_slice", "winner_offset").rows() == [
        (0, 0, "counted", None, None, None),
        (1, 0, "counted", None, None, None),
        (1, 1, "rejected", "unreadable", None, None),
        (1, 2, "counted", None, None, None),
        (1, 3, "duplicate", None, 1, 2),
        (1, 4, "quarantined", "conflict", 1, 0),
        (1, 5, "rejected", "schema", None, None),
    ]
    assert frame["raw"].to_list() == [
        None,
        None,
        b"{not json",
        None,
        None,
        None,
        b'{"schema": "headrace.audit.v1"}',
    ]
    assert set(frame["tenant"]) == {ORGANISATION}


def test_every_field_is_there_and_the_conflict_keeps_its_own(tmp_path: Path) -> None:
    first = event(1, trace_id="0" * 31 + "1", sealed="c2VhbGVk")
    frame = put(tmp_path, records([first, event(1, outcome="denied")]))
    row = frame.row(0, named=True)
    assert row | {"identity": None, "content": None} == {
        "slice": 1, "topic_id": "topic-1", "partition": 0, "offset": 0, "tenant": ORGANISATION,
        "received": datetime.fromtimestamp(1_780_000_000, UTC), "event_id": "aud_01890a5d-ac96-774b-bcce-000000000001",
        "identity": None, "content": None, "event_time": LONG_AGO, "actor": "usr_1", "action": "api_key.create",
        "target": "key_1", "outcome": "success", "trace_id": "0" * 31 + "1", "detail": '{"count":"2","scopes":"usage:write"}',
        "sealed": "c2VhbGVk", "fate": "counted", "code": None, "winner_slice": None, "winner_partition": None,
        "winner_offset": None, "raw": None,
    }  # fmt: skip
    assert frame["outcome"].to_list() == ["success", "denied"]


def test_the_same_event_written_otherwise_is_a_duplicate() -> None:
    written = event(1)
    otherwise = written.replace(
        b'"count":"2","scopes":"usage:write"', b'"scopes": "usage:write", "count": "2"'
    )
    otherwise = otherwise.replace(
        b'"scopes":"usage:write","count":"2"', b'"count": "2", "scopes": "usage:write"'
    )
    assert otherwise != written
    parsed = parse_records([records([written, otherwise, event(1, actor="usr_2")])])
    assert parsed.content[0] == parsed.content[1] != parsed.content[2]
    assert parsed.high[0] == parsed.high[1] == parsed.high[2]


@pytest.mark.parametrize("batches", [[], [[]]])
def test_no_record_is_an_empty_frame(batches: list[list[Record]]) -> None:
    assert len(parse_records(batches).frame) == 0
