"""Records of the topic as columns. Pure, and by far the hottest loop of the platform.

What a record means is decided in one place, `core.contracts.usage.parse_record`. Here the usual record, of which
its layout and its columns can say that the parser would take it, is read with many others at once; every other
goes through the parser itself.
"""

import hashlib
from collections.abc import Iterable, Sequence
from datetime import timedelta
from typing import Any, Final

import msgspec
import numpy as np
import numpy.typing as npt
import polars as pl
import pyarrow as pa

from assets.slices.fates import Parsed
from assets.usage.layouts import LONGEST_TIME, STRINGS, Values, find_values
from assets.usage.schema import NOBODY, QUANTITY, TIME, USAGE
from assets.usage.special import NOTHING_SPECIAL, special_kind, with_special
from core.contracts.usage import (
    MAX_AGE,
    MAX_AHEAD,
    ContractError,
    UsageData,
    UsageEvent,
    UsageRecord,
    dimensions_text,
    microseconds,
    not_measurable,
    parse_record,
)
from core.eventlog.api import Record
from core.meters import METERS, Aggregation

CHUNK: Final = 50_000
"""Records read at once."""

COLUMNS: Final = {name: "event_id" if name == "id" else name for name in STRINGS if name != "time"}
"""Field of the contract to column."""

_SEQUENCE: Final = r"^[1-9][0-9]{0,15}$"
_LAST_SEQUENCE: Final = (1 << 53) - 1
_QUANTITY: Final = r"^(?:0|[1-9][0-9]{0,17})(?:\.[0-9]{1,9})?$"
_TIME: Final = b"2000-00-00T00:00:00.000000"
_DIGITS: Final = [place for place, letter in enumerate(_TIME) if letter in b"0123456789"]
_SECONDS: Final = _TIME.index(b".")
_UTC: Final = b"+00:00"
_DIMENSIONS = msgspec.json.Decoder(UsageData.__annotations__["dimensions"])
_MICROSECOND = timedelta(microseconds=1)

Array = npt.NDArray[Any]


_ARRAYS = ("partition", "offset", "readable", "acceptable", "high", "low", "content")


def parse_records(batches: Iterable[list[Record]]) -> Parsed:
    """Read every record; rows come out in the order of partition and offset."""
    chunks, held = [], list[Record]()
    for batch in batches:
        held += batch
        if len(held) >= CHUNK:
            chunks.append(_parse(held))
            held = []
    if held or not chunks:
        chunks.append(_parse(held))
    if len(chunks) == 1:
        frame, arrays = chunks[0].frame, {name: getattr(chunks[0], name) for name in _ARRAYS}
    else:
        frame = pl.concat([chunk.frame for chunk in chunks])
        arrays = {name: np.concatenate([getattr(chunk, name) for chunk in chunks]) for name in _ARRAYS}
    partition, offset = arrays["partition"], arrays["offset"]
    later = (partition[1:] > partition[:-1]) | (
        (partition[1:] == partition[:-1]) & (offset[1:] > offset[:-1])
    )
    if not later.all():  # Kafka hands out partitions interleaved
        order = np.lexsort((offset, partition))
        frame, arrays = frame[order], {name: array[order] for name, array in arrays.items()}
    return Parsed(frame, **arrays)


def _parse(records: Sequence[Record]) -> Parsed:
    values = find_values([record.value for record in records])
    texts = {column: values.texts[name] for name, column in COLUMNS.items()}
    time, sure = times(values)
    dimensions, right = _dimensions(texts["meter"], values.texts["dimensions"])
    numbers, numbered = sequences(values)
    sure &= values.fits & right & numbered & texts["quantity"].str.contains(_QUANTITY).to_numpy()
    frame = pl.DataFrame({**texts, "dimensions": dimensions, "sequence": numbers}).with_columns(
        kind=pl.lit(USAGE), code=pl.lit(None, pl.String), raw=pl.lit(None, pl.Binary)
    )
    readable = np.ones(len(records), bool)
    others = np.flatnonzero(~sure).tolist()
    special = {}
    if others:
        events = [_read_one(records[row]) for row in others]
        rows = [_row(event, records[row]) for event, row in zip(events, others, strict=True)]
        readable[others] = [row["code"] is None for row in rows]
        time[others] = [row.pop("time") for row in rows]
        read = pl.DataFrame(rows, schema=frame.schema)
        frame = frame.with_columns(frame[name].scatter(others, read[name]) for name in frame.columns)
        special = {row: event for row, event in zip(others, events, strict=True) if special_kind(event)}
    return with_special(_finish(frame, records, time, readable), special)


def _dimensions(meters: pl.Series, written: pl.Series) -> tuple[pl.Series, Array]:
    """Canonical text of dimensions as they were written, and where it is sure that `parse` takes them."""
    (names, name), (texts, text) = _coded(meters), _coded(written)
    pair = name.astype(np.int64) * len(texts) + text
    known: list[str | None] = [None] * (len(names) * len(texts))
    for each in np.flatnonzero(np.bincount(pair)).tolist():
        known[each] = _canonical(names[each // len(texts)], texts[each % len(texts)])
    found = pl.Series("dimensions", known, dtype=pl.String).gather(pair)
    return found, found.is_not_null().to_numpy()


def _coded(texts: pl.Series) -> tuple[list[str], Array]:
    """The different texts, and of each row which one it is. Arrow's own `to_numpy` would import pandas."""
    encoded = texts.to_arrow().dictionary_encode()
    return encoded.dictionary.to_pylist(), np.frombuffer(encoded.indices.buffers()[1], np.int32)[: len(texts)]


def sequences(values: Values) -> tuple[pl.Series, Array]:
    """Numbers given by producers (Int64, null where there is none), and where it is sure that they are right."""
    written, producer, incarnation = (values.texts[name] for name in ("sequence", "producer", "incarnation"))
    if not any(texts.str.len_bytes().max() for texts in (written, producer, incarnation)):
        nothing = pl.repeat(None, len(written), dtype=pl.Int64, eager=True)
        return nothing.alias("sequence"), np.ones(len(written), bool)
    numbers = pl.select(pl.when(written.str.contains(_SEQUENCE)).then(written)).to_series().cast(pl.Int64)
    named, numbered = producer != "", written != ""
    right = (named == numbered) & (named | (incarnation == ""))
    right &= ~numbered | numbers.is_between(1, _LAST_SEQUENCE).fill_null(value=False)
    return numbers.alias("sequence"), right.to_numpy()


def _canonical(name: str, written: str) -> str | None:
    meter = METERS.get(name)
    try:
        dimensions = _DIMENSIONS.decode(written or "{}")
    except msgspec.MsgspecError:
        return None
    if meter is None or not meter.dimensions.issuperset(dimensions):
        return None
    # A weight depends on the quantity beside it, so the parser itself looks at each.
    if meter.aggregation is Aggregation.WEIGHTED_SUM or (
        meter.measured and not_measurable(meter, "", dimensions)
    ):
        return None
    return dimensions_text(dimensions)


def times(values: Values) -> tuple[Array, Array]:
    """Times in microseconds since 1970, and of which it is sure that they are right (the others are 0).

    Read as digits side by side: a tenth of what it costs to have each text parsed.
    """
    length, letters, rows = values.time_length, values.times, np.arange(len(values.fits))
    zulu = letters[rows, np.maximum(length, 1) - 1] == ord("Z")
    end = np.clip(length - np.where(zulu, 1, len(_UTC)), 0, LONGEST_TIME - len(_UTC))
    sure = zulu & (length == end + 1)
    if not zulu.all():
        offset = letters[rows[:, None], end[:, None] + np.arange(len(_UTC))]
        sure |= (length == end + len(_UTC)) & (offset == np.frombuffer(_UTC, np.uint8)).all(axis=1)
    sure &= (end == _SECONDS) | ((end > _SECONDS + 1) & (end <= len(_TIME)))
    letters = np.ascontiguousarray(letters[:, : len(_TIME)].T)
    for place, letter in enumerate(_TIME):
        if place >= _SECONDS:
            letters[place] = np.where(place < end, letters[place], letter)
        if place not in _DIGITS:
            sure &= letters[place] == letter
    digits = letters - ord("0")
    sure &= (digits[_DIGITS] <= 9).all(axis=0)

    def number(first: int, last: int) -> Array:
        value = np.zeros(len(length), np.int64)
        for place in range(first, last):
            value = value * 10 + digits[place]
        return value

    year, month, day = number(0, 4), number(5, 7), number(8, 10)
    hour, minute, second = number(11, 13), number(14, 16), number(17, 19)
    sure &= (year >= 2000) & (year < 2200) & (month >= 1) & (month <= 12)
    sure &= (hour < 24) & (minute < 60) & (second < 60)
    months = np.where(sure, (year - 1970) * 12 + month - 1, 0).astype("datetime64[M]")
    days = months.astype("datetime64[D]") + (day - 1)
    sure &= days.astype("datetime64[M]") == months
    seconds = ((days.astype(np.int64) * 24 + hour) * 60 + minute) * 60 + second
    return np.where(sure, seconds * 1_000_000 + number(20, 26), 0), sure


def _read_one(record: Record) -> UsageRecord | ContractError:
    """An unusual record, or why it is refused."""
    try:
        return parse_record(record.value)
    except ContractError as error:
        return error


def _row(event: UsageRecord | ContractError, record: Record) -> dict[str, Any]:
    """What stands in the columns for an unusual record."""
    if isinstance(event, ContractError):
        owner = record.key.split(b"|", 1)[0].decode(errors="replace").replace("\x00", "\ufffd")
        return {"tenant": owner[:128] or NOBODY, "code": event.code, "raw": record.value, "time": 0}
    row = {
        "tenant": event.tenant,
        "source": event.source,
        "event_id": event.id,
        "subject": event.subject,
        "importid": event.importid,
        "code": None,
        "time": microseconds(event.time),
    }
    if not isinstance(event, UsageEvent):
        return row
    return row | {
        "kind": USAGE,
        "meter": event.data.meter,
        "quantity": event.data.quantity,
        "dimensions": dimensions_text(event.data.dimensions),
        **{name: getattr(event, name) for name in ("producer", "incarnation", "sequence")},
    }


def _finish(frame: pl.DataFrame, records: Sequence[Record], time: Array, readable: Array) -> Parsed:
    received = np.array([record.timestamp_ms for record in records], np.int64) * 1000
    live = (frame["importid"].fill_null("-") == "").to_numpy()
    beyond = (time > received + MAX_AHEAD // _MICROSECOND) | (time < received - MAX_AGE // _MICROSECOND)
    acceptable = readable & ~(beyond & live)
    high, low, identities = _identities(frame)
    seen = pl.Series(readable)
    frame = frame.with_columns(
        pl.col("quantity").cast(QUANTITY),
        partition=pl.Series([record.partition for record in records], dtype=pl.Int32),
        offset=pl.Series([record.offset for record in records], dtype=pl.Int64),
        received=pl.Series(received).cast(TIME),
        event_time=pl.when(seen).then(pl.Series(time).cast(TIME)),
        identity=pl.when(seen).then(identities),
        code=pl.when(pl.Series(readable & ~acceptable)).then(pl.lit("out_of_limits")).otherwise("code"),
    )
    content = contents(frame, time)
    frame = frame.with_columns(content=pl.when(seen).then(pl.Series(content)), **NOTHING_SPECIAL)
    arrays = (frame["partition"].to_numpy(), frame["offset"].to_numpy())
    return Parsed(frame, *arrays, readable, acceptable, high, low, content)


def _identities(frame: pl.DataFrame) -> tuple[Array, Array, pl.Series]:
    """`core.ids.identity` of each row, as two halves for the index and as bytes."""
    pieces: list[pl.Expr] = []
    for name in ("tenant", "source", "event_id"):
        pieces += [pl.col(name).str.len_chars().cast(pl.String), pl.lit(":"), pl.col(name)]
    texts = frame.select(pl.concat_str(pieces, ignore_nulls=True).cast(pl.Binary)).to_series()
    sha256 = hashlib.sha256
    digests = b"".join([sha256(text).digest() for text in texts.to_list()])
    halves = np.frombuffer(digests, ">u8").reshape(-1, 4)[:, :2].astype(np.uint64)
    shortened = np.frombuffer(digests, "V16")[::2].copy()
    identities = pa.Array.from_buffers(pa.binary(16), len(shortened), [None, pa.py_buffer(shortened)])
    return halves[:, 0].copy(), halves[:, 1].copy(), pl.Series(pl.from_arrow(identities.cast(pa.binary())))


def contents(frame: pl.DataFrame, time: Array) -> Array:
    """int64 over everything that decides money: equal events written differently are equal here.

    Two events of one identity, so of one tenant, are compared by it, never two tenants: 64 mixed bits
    are enough, and they cost a fortieth of a cryptographic hash.
    """
    quantity = frame["quantity"].fill_null(0).to_arrow()
    words = np.frombuffer(quantity.buffers()[1], "<u8").reshape(-1, 2)[quantity.offset :][: len(frame)]
    mixed = _mix(_mix(_mix(np.uint64(0), time.view(np.uint64)), words[:, 0]), words[:, 1])
    for name in ("meter", "subject", "dimensions"):
        mixed = _mix(mixed, _text_hashes(frame[name]))
    return mixed.view(np.int64)


def _text_hashes(texts: pl.Series) -> Array:
    """64 bits of SHA-256 of each text, computed once for each different one."""
    different, which = _coded(texts.fill_null(""))
    each = b"".join(hashlib.sha256(text.encode()).digest()[:8] for text in different)
    hashes: Array = np.frombuffer(each, "<u8")[which]
    return hashes


def _mix(state: Any, value: Array) -> Array:
    """One step of SplitMix64 (Steele, Lea and Flood 2014) over `state` and `value`."""
    mixed: Array = (state + np.uint64(0x9E3779B97F4A7C15)) ^ value
    mixed = (mixed ^ (mixed >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    mixed = (mixed ^ (mixed >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    mixed ^= mixed >> np.uint64(31)
    return mixed
