"""Reading many records at once means what reading each with the contract's own parser means."""

import json
from datetime import UTC, datetime, timedelta
from typing import Any

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from assets.usage.layouts import LAYOUTS, LONGEST, find_values, learn
from assets.usage.reading import parse_records, sequences, times
from core.contracts.usage import (
    ContractError,
    UsageEvent,
    VoidEvent,
    canonical_quantity,
    dimensions_text,
    microseconds,
    out_of_limits,
    parse_record,
)
from core.eventlog.api import Record

NOW = datetime(2026, 6, 1, 12, 0, tzinfo=UTC)
GOOD: dict[str, Any] = {
    "specversion": "1.0",
    "type": "headrace.usage.v1",
    "id": "one",
    "source": "agents/eu-1",
    "time": "2026-06-01T11:00:00.000Z",
    "tenant": "org_1",
    "subject": "cus_1",
    "data": {"meter": "llm.tokens.input", "quantity": "12.5", "dimensions": {"model": "m", "region": "eu"}},
}
SPOILT: dict[str, list[Any]] = {
    "id": ["", "a\x00", "é" * 256, "x" * 257, 1, None, "\U0001f600", "1:a"],
    "source": ["\x00", "", "s"],
    "tenant": ["org_\x00", "", "t" * 129, "-"],
    "subject": ["", "s\x00", "s" * 257, None],
    "importid": ["", "imp_1", "i" * 65, "i\x00"],
    "datacontenttype": ["", "application/json", "text/plain"],
    "specversion": ["1.0", "0.3"],
    "type": ["other"],
    "unknown": [1],
    "producer": ["", "crm", "p" * 129, "p\x00", 7],
    "incarnation": ["", "i", "i" * 65],
    "sequence": [1, 17, 2**53 - 1, 2**53, 0, -1, 1.5, "1", None, True],
    "time": [
        "2026-06-01T11:00:00Z", "2026-06-01T11:00:00.1234567Z", "2026-06-01T11:00:00.123456+00:00",
        "2026-06-01T13:00:00+02:00", "2026-06-01 11:00:00Z", "2026-06-01t11:00:00z", "2026-06-01T11:00:00",
        "2026-02-30T11:00:00Z", "2024-02-29T00:00:00Z", "1999-12-31T23:59:59Z", "2200-01-01T00:00:00Z",
        "2199-12-31T23:59:59.999999Z", "2026-06-01T24:00:00Z", "2026-06-01T11:60:00Z", "2026-06-01T11:00:60Z",
        "2026-06-01T12:05:00Z", "2026-06-01T12:05:00.000001Z", "2025-04-27T12:00:00Z", "2025-04-27T11:59:59Z",
        "2026-06-01T11:00:00-00:00", "2026-06-01T11:00Z", "", 5, "２026-06-01T11:00:00Z", "2026-06-01T11:00:00Z\n",
    ],
}  # fmt: skip
TOGETHER: list[dict[str, Any]] = [
    {"producer": "crm", "sequence": number, **more}
    for number in SPOILT["sequence"]
    for more in ({}, {"incarnation": "i"})
]
OTHERS: list[dict[str, Any]] = [
    {"type": "headrace.usage.void.v1", "data": {"source": "s", "id": "a"}},
    {"type": "headrace.usage.void.v1", "data": {"source": "s", "id": "ü"}},
    {"type": "headrace.usage.void.v1", "data": {"source": "s"}},
    {"type": "headrace.usage.void.v1", "data": {"source": "\x00", "id": "a"}},
    *(
        {
            "type": "headrace.usage.checkpoint.v1",
            "data": {"producer": "p", "first": 2, "last": last, "count": 3, "hash": "0" * 64},
        }
        for last in (4, 5)
    ),
    {"type": ["headrace.usage.void.v1"]},
]
SPOILT_DATA: dict[str, list[Any]] = {
    "meter": ["llm.tokens.output", "api.requests", "none.such", ""],
    "quantity": [
        "0", "1.", ".5", "01", "-1", "1e3", "1.50", "999999999999999999.999999999", "1000000000000000000",
        "0.0000000001", "٣", "1\n", "", 5, "NaN",
    ],
    "dimensions": [
        {}, {"region": "eu", "model": "m"}, {"model": "m\x00"}, {"model": ""}, {"model": 1}, {"nope": "x"}, [], None,
        {"model": 'quo"te\\'}, {"model": "x" * 257},
    ],
    "surprise": [1],
}  # fmt: skip


@st.composite
def values(draw: st.DrawFn) -> bytes:
    """One record: good, changed in some places, written in an unusual way, or noise."""
    event = json.loads(json.dumps(GOOD))
    event["id"] = draw(st.sampled_from(["one", "two", "three"]))
    if draw(st.booleans()):
        event |= {"producer": "crm-7", "incarnation": "i", "sequence": draw(st.integers(1, 10**16))}
    for name in draw(st.lists(st.sampled_from(sorted(SPOILT)), max_size=2)):
        event[name] = draw(st.sampled_from(SPOILT[name]))
    for name in draw(st.lists(st.sampled_from(sorted(SPOILT_DATA)), max_size=2)):
        event["data"][name] = draw(st.sampled_from(SPOILT_DATA[name]))
    for name in draw(st.lists(st.sampled_from(sorted(GOOD)), max_size=1)) if draw(st.booleans()) else []:
        del event[name]
    event |= draw(st.sampled_from([{}, {}, {}, *OTHERS]))
    text = json.dumps(event, indent=draw(st.sampled_from([None, None, 1])), ensure_ascii=draw(st.booleans()))
    odd = draw(st.integers(0, 12))
    return {
        0: b"",
        1: b"\n",
        2: text.encode() + b"\n" + text.encode(),
        3: text.encode()[:-1],
        4: b"[" * 2_000,
        5: text.encode().replace(b"cus_1", b"\xff"),
        6: text.encode().replace(b'"quantity"', b'"quantity": "7", "quantity"'),
        7: text.encode().replace(b'"model"', b'"model": "q", "model"'),
    }.get(odd, text.encode())


def expected(record: Record) -> tuple[Any, ...]:
    """What the contract says of one record: code, then the columns."""
    try:
        event = parse_record(record.value)
    except ContractError as error:
        return (error.code, "org_key", *[None] * 15, record.value)
    late = out_of_limits(event, datetime.fromtimestamp(record.timestamp_ms / 1000, tz=UTC))
    common = (
        "out_of_limits" if late else None, event.tenant, event.source, event.id, event.identity,
        microseconds(event.time), event.subject, event.importid,
    )  # fmt: skip
    if isinstance(event, UsageEvent):
        said = (
            event.data.meter,
            canonical_quantity(event.data.quantity),
            dimensions_text(event.data.dimensions),
        )
        return (*common, "usage", *said, None, event.producer, event.incarnation, event.sequence, None, None)
    kind = "void" if isinstance(event, VoidEvent) else "checkpoint"
    reference = event.reference if isinstance(event, VoidEvent) else None
    data = json.dumps(msgspec.to_builtins(event.data), separators=(",", ":"), ensure_ascii=False)
    return (*common, kind, None, None, None, data, None, None, None, reference, None)


def read(records: list[Record]) -> list[tuple[Any, ...]]:
    parsed = parse_records([records])
    rows = parsed.frame.iter_rows(named=True)
    result = []
    for row, readable, high, low in zip(rows, parsed.readable, parsed.high, parsed.low, strict=True):
        if readable:
            assert row["identity"] == int(high).to_bytes(8, "big") + int(low).to_bytes(8, "big")
        time, quantity = row["event_time"], row["quantity"]
        result.append((
            row["code"], row["tenant"], row["source"], row["event_id"], row["identity"],
            None if time is None else microseconds(time), row["subject"], row["importid"], row["kind"], row["meter"],
            None if quantity is None else canonical_quantity(f"{quantity:f}"), row["dimensions"], row["data"],
            row["producer"], row["incarnation"], row["sequence"], row["reference"], row["raw"],
        ))  # fmt: skip
    return result


def as_records(payloads: list[bytes]) -> list[Record]:
    received = int(NOW.timestamp() * 1000)
    return [
        Record("usage.records", 0, offset, b"org_key|cus", value, received)
        for offset, value in enumerate(payloads)
    ]


@settings(max_examples=150, deadline=None)
@given(st.lists(values(), min_size=1, max_size=12))
def test_bulk_reading_is_the_contract(payloads: list[bytes]) -> None:
    records = as_records(payloads)
    assert read(records) == [expected(record) for record in records]


@pytest.mark.parametrize("blank", [b"", b" ", b"\t", b"\r"])
def test_a_blank_record_does_not_hide_that_another_holds_two_events(blank: bytes) -> None:
    """The fast way leaves blank lines out, so that counting lines alone would count both events."""
    good = json.dumps(GOOD).encode()
    records = as_records([good, blank, good + good, good])
    assert read(records) == [expected(record) for record in records]
    assert [row[0] for row in read(records)] == [None, "unreadable", "unreadable", None]


def test_every_spoilt_value_alone_and_between_good_ones() -> None:
    payloads = [json.dumps(GOOD).encode()]
    for changes, inside in ((SPOILT, False), (SPOILT_DATA, True)):
        for name, bad in changes.items():
            for value in bad:
                event = json.loads(json.dumps(GOOD))
                (event["data"] if inside else event)[name] = value
                payloads += [json.dumps(event).encode(), payloads[0]]
    for changes in (*TOGETHER, *OTHERS):
        payloads += [json.dumps(GOOD | changes).encode(), payloads[0]]
    records = as_records(payloads)
    assert read(records) == [expected(record) for record in records]
    for record in records[1::2]:
        assert read([record]) == [expected(record)]


GOOD_TEXT = json.dumps(GOOD).encode()
NUMBERED_TEXT = json.dumps({"producer": "crm-7", "sequence": 170, **GOOD}).encode()
ASIAN_TEXT = json.dumps({**GOOD, "subject": "客户一"}, ensure_ascii=False).encode()


@st.composite
def edited(draw: st.DrawFn) -> bytes:
    """A good record in which a few bytes were left out, put in or copied from elsewhere in it."""
    text = draw(st.sampled_from([GOOD_TEXT, GOOD_TEXT, ASIAN_TEXT, NUMBERED_TEXT]))
    for _ in range(draw(st.integers(0, 2))):
        first = draw(st.integers(0, len(text)))
        last = first + draw(st.integers(0, 3))
        start = draw(st.integers(0, len(text)))
        new = draw(st.one_of(
            st.sampled_from([b"", b'"', b"\\", b"\n", b" ", b",", b"{", b"}", b"0", b"\xff", b"\xe5", b'":"', b'","']),
            st.just(text[start : start + draw(st.integers(0, 30))]),
        ))  # fmt: skip
        text = text[:first] + new + text[last:]
    return text


@settings(max_examples=400, deadline=None)
@given(st.lists(edited(), min_size=2, max_size=12))
def test_no_edit_of_a_record_is_taken_for_another_value(payloads: list[bytes]) -> None:
    """The layout is learnt from whichever record comes first; the others are good but for some bytes."""
    records = as_records(payloads)
    assert read(records) == [expected(record) for record in records]


@pytest.mark.parametrize(
    "neighbours",
    [
        (GOOD_TEXT + "é".encode()[:1], "é".encode()[1:] + GOOD_TEXT),
        (GOOD_TEXT[:-1] + b' "', b'"' + GOOD_TEXT),
        (GOOD_TEXT.replace(b"cus_1", "é".encode()[:1]), GOOD_TEXT.replace(b"cus_1", "é".encode()[1:])),
        (GOOD_TEXT.replace(b"one", b"x" * LONGEST), b""),
    ],
)
def test_records_do_not_lean_on_their_neighbours(neighbours: tuple[bytes, bytes]) -> None:
    records = as_records([GOOD_TEXT, *neighbours, GOOD_TEXT])
    assert read(records) == [expected(record) for record in records]
    assert read(records)[0][0] is None


def test_usual_records_take_the_short_way() -> None:
    """Without it the tests above would compare the contract with itself."""
    texts = [
        GOOD_TEXT,
        json.dumps(GOOD, separators=(",", ":")).encode(),
        json.dumps(dict(reversed(GOOD.items()))).encode(),
        json.dumps({**GOOD, "data": {"quantity": "1", "meter": "llm.requests"}, "importid": "imp"}).encode(),
        json.dumps({**GOOD, "data": {**GOOD["data"], "dimensions": {}}}).encode(),
        ASIAN_TEXT,
        parse_record(GOOD_TEXT).encode(),
        json.dumps({**GOOD, "producer": "p", "sequence": 7, "incarnation": "i"}).encode(),
        json.dumps({**GOOD, "producer": "p", "sequence": 12, "incarnation": "i"}).encode(),
        json.dumps({**GOOD, "producer": "p", "sequence": 3}).encode(),
    ]
    values = find_values(texts)
    assert values.fits.all()
    assert values.texts["id"].to_list() == ["one"] * len(texts)
    assert values.texts["subject"].to_list() == ["cus_1"] * 5 + ["客户一"] + ["cus_1"] * 4
    assert values.texts["sequence"].to_list() == [""] * 7 + ["7", "12", "3"]
    numbers, sure = sequences(values)
    assert numbers.to_list() == [None] * 7 + [7, 12, 3]
    assert sure.all()
    assert values.texts["dimensions"].to_list()[2:5] == ['{"model": "m", "region": "eu"}', "", "{}"]


def test_what_is_no_event_costs_no_layout_of_the_others() -> None:
    junk = [b"{%d}" % number for number in range(2 * LAYOUTS)]
    assert find_values([*junk, GOOD_TEXT, GOOD_TEXT]).fits.sum() in {0, 2}
    assert find_values([junk[0], GOOD_TEXT, junk[1]]).fits.tolist() == [False, True, False]


@pytest.mark.parametrize(
    "text",
    [
        b"",
        GOOD_TEXT[:-1],
        GOOD_TEXT.replace(b'"tenant"', b'"tenant": "x", "tenant"'),
        GOOD_TEXT.replace(b'"tenant"', b'"tenant": "org_1", "tenant"'),
        GOOD_TEXT.replace(b"org_1", b"org\\u005f1"),
        GOOD_TEXT.replace(b'"data"', b'"d\\u0061ta"'),
    ],
)
def test_a_record_without_a_layout(text: bytes) -> None:
    assert learn(GOOD_TEXT) is not None
    assert learn(text) is None


@pytest.mark.parametrize(
    ("text", "sure"),
    [
        ("2026-06-01T11:00:00Z", True),
        ("2026-06-01T11:00:00.1Z", True),
        ("2026-06-01T11:00:00.123456+00:00", True),
        ("2024-02-29T23:59:59.999999Z", True),
        ("2026-06-01T13:00:00+02:00", False),
        ("2026-06-01T11:00:00.Z", False),
        ("2026-06-01T11:00:00.1234567Z", False),
        ("2026-02-29T11:00:00Z", False),
        ("2026-00-01T11:00:00Z", False),
        ("2026-06-00T11:00:00Z", False),
        ("2026-06-01T24:00:00Z", False),
        ("2026-06-01X11:00:00Z", False),
        ("2026-06-0111:00:00Z", False),
        ("Z", False),
        ("", False),
    ],
)
def test_times_are_read_as_digits(text: str, sure: bool) -> None:
    good = GOOD_TEXT.replace(GOOD["time"].encode(), text.encode())
    moments, found = times(find_values([GOOD_TEXT, good]))
    assert found.tolist() == [True, sure]
    assert moments[1] == (microseconds(datetime.fromisoformat(text)) if sure else 0)


def content(**changes: Any) -> int:
    event = json.loads(json.dumps(GOOD))
    event["data"] |= changes.pop("data", {})
    return int(parse_records([as_records([json.dumps(event | changes).encode()])]).content[0])


@pytest.mark.parametrize(
    "same",
    [
        {"time": "2026-06-01T13:00:00+02:00"},
        {"time": "2026-06-01T11:00:00Z"},
        {"data": {"quantity": "12.500"}},
        {"data": {"dimensions": {"region": "eu", "model": "m"}}},
        {"importid": "imp_1"},
    ],
)
def test_equal_events_written_differently_have_one_content(same: dict[str, Any]) -> None:
    assert content(**same) == content()


@pytest.mark.parametrize(
    "other",
    [
        {"time": "2026-06-01T11:00:00.000001Z"},
        {"subject": "cus_2"},
        {"subject": ""},
        {"data": {"quantity": "12.51"}},
        {"data": {"quantity": "12.500000001"}},
        {"data": {"quantity": "100000000012.5"}},
        {"data": {"meter": "llm.tokens.output"}},
        {"data": {"dimensions": {"model": "m"}}},
        {"data": {"dimensions": {"model": "eu", "region": "m"}}},
    ],
)
def test_whatever_decides_money_is_content(other: dict[str, Any]) -> None:
    assert content(**other) != content()


def test_content_is_the_same_for_ever() -> None:
    """It is kept in the lake: another value would turn every later duplicate into a conflict."""
    assert content() == 9014920170294556324
    assert (
        content(data={"quantity": "999999999999999999.999999999", "dimensions": {}}, subject="")
        == -1604366217763441394
    )


def test_rows_come_out_in_the_order_of_the_log() -> None:
    good = json.dumps(GOOD).encode()
    received = int((NOW + timedelta(hours=1)).timestamp() * 1000)
    interleaved = [
        Record("usage.records", partition, offset, b"k", good, received)
        for offset in range(3)
        for partition in (2, 0)
    ]
    parsed = parse_records([interleaved[:4], interleaved[4:]])
    assert parsed.frame.select("partition", "offset").rows() == [(p, o) for p in (0, 2) for o in range(3)]
    assert parsed.partition.tolist() == [0, 0, 0, 2, 2, 2]
