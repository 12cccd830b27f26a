"""Sender completeness: which events of a producer are missing or doubled, named by producer and sequence.

Slices are gone through in order, once each, in one transaction with how far they were gone through. A
checkpoint is judged when the lake holds all of the log that was there when the checkpoint was read, since
its events were acknowledged before it was sent; and again whenever a record of its range lands. Its verdict
is a function of rows in the lake, so it is the same however often and in which order it is come by.

Numbers of different incarnations have nothing to do with each other, and what no checkpoint claims is never
missing: a restart, with or without a new incarnation, raises no alarm.
"""

import json
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

import polars as pl
import psycopg2
from deltalake import DeltaTable
from psycopg2.extras import execute_values

from assets.slices.progress import SLICE, landed_from, landed_offsets
from assets.usage import schema
from assets.usage.completeness import COLUMNS, COMPLETE, Claim, judge, ranges_json
from assets.usage.transform import COUNTED
from core.database.urls import libpq_dsn
from core.ids import derived_id
from core.lake import Lake
from core.lake.read import read, spans
from core.settings import DatabaseSettings

ROWS_AT_ONCE = 1_000_000
LOCK = 7_240_003
"""Advisory lock of the one reconciler."""
STREAMS = 1000
"""Producers and incarnations of one organisation that are followed one by one in one look, beside those that
sent checkpoints. Of the others only the slices are known that hold any of them."""
FORGET = "30 days"
"""After so long no checkpoint comes any more that claims a record."""
FORGET_REST = "1 day"
"""The same for a stream that is not followed: its first checkpoint is judged by reading every slice that holds others."""

STREAM = ("tenant", "producer", "incarnation")
REST = ""
"""Producer in `usage_producer_slice` that stands for all that are not followed: none has this name."""
LAST_SEQUENCE = (1 << 53) - 1
Key = tuple[str, str, str]
Ends = Callable[[], tuple[str, Mapping[int, int]]]
"""Id of the topic, and where the log ends now."""

_READ = {
    name: schema.EVENTS_SCHEMA[name]
    for name in (*COLUMNS, *STREAM, "kind", "data", "topic_id", "received", "ref_slice", "ref_partition", "ref_offset")
}  # fmt: skip


@dataclass(slots=True)
class Reconciled:
    """`slice` is how far it went. `open` findings: checkpoints that are not complete, of all organisations;
    `missing` events they lack."""

    slice: int = 0
    first: int | None = None
    """First of the slices that it went through now."""
    checkpoints: int = 0
    judged: int = 0
    open: int = 0
    missing: int = 0
    closed: int = 0
    named: list[str] = field(default_factory=list)
    """Ids of checkpoints that were found wanting for the first time."""


def reconcile(lake: Lake, database: DatabaseSettings, ends: Ends) -> Reconciled:
    """Go through the slices that were not gone through yet. Safe to repeat at any time."""
    done = Reconciled()
    events = lake.open(schema.EVENTS)
    if events is None:
        return done
    table, last = str(events.metadata().id), events.transaction_version(SLICE) or 0
    connection = psycopg2.connect(libpq_dsn(database, "system"))
    try:
        with connection, connection.cursor() as cursor:
            cursor.execute("select pg_advisory_xact_lock(%s)", (LOCK,))
            cursor.execute("select slice from usage_reconciled where table_id = %s", (table,))
            known = cursor.fetchone()
            before = known[0] if known else 0
            if known is None:
                # Another table or generation: its slices have other numbers, and all of it is found again.
                cursor.execute("delete from usage_producer")
                cursor.execute("delete from usage_producer_slice")
                cursor.execute("delete from usage_checkpoint")
                cursor.execute("delete from usage_reconciled")
            done.slice = max(before, last)
            if before < last:
                done.first = before + 1
                for low, high in spans(events, "slice", before + 1, last, rows=ROWS_AT_ONCE):
                    _take(cursor, _news(lake, events, low, high), ends, done)
                cursor.execute(
                    "insert into usage_reconciled (table_id, slice) values (%s, %s) "
                    "on conflict (table_id) do update set slice = excluded.slice",
                    (table, last),
                )
                # By the log's own clock.
                cursor.execute(
                    "delete from usage_producer_slice where received < (select max(last_received) from usage_producer) "
                    "- (case when producer = %s then %s else %s end)::interval",
                    (REST, FORGET_REST, FORGET),
                )
            _judge(cursor, lake, events, ends, done)
            cursor.execute(
                "select count(*), coalesce(sum(missing_events), 0)::bigint from usage_checkpoint "
                "where state in ('incomplete', 'different')"
            )
            done.open, done.missing = cursor.fetchone()
    finally:
        connection.close()
    return done


def _news(lake: Lake, events: DeltaTable, low: int, high: int) -> pl.DataFrame:
    """Records of producers, checkpoints and voids of these slices."""
    wanted = (pl.col("producer") != "") | pl.col("kind").is_in([schema.CHECKPOINT, schema.VOID])
    return read(
        lake, schema.EVENTS, events, _READ, within=("slice", low, high),
        where=pl.col("slice").is_between(low, high) & wanted,
    )  # fmt: skip


def _take(cursor: Any, news: pl.DataFrame, ends: Ends, done: Reconciled) -> None:
    """Write down what is new: records by stream and slice, claims, and which checkpoints they concern."""
    claims = news.filter((pl.col("kind") == schema.CHECKPOINT) & (pl.col("fate") == COUNTED))
    numbered = news.filter(pl.col("sequence").is_not_null())
    if len(numbered):
        _note_records(cursor, _followed(cursor, numbered, claims))
    if len(claims):
        done.checkpoints += _note_claims(cursor, claims, ends)
    voids = news.filter((pl.col("kind") == schema.VOID) & (pl.col("fate") == COUNTED))
    if len(voids):
        # A void of one of two events under one number mends it: the verdict also reads the void's slice.
        execute_values(
            cursor,
            "update usage_checkpoint c set state = 'waiting', "
            "slices = array(select distinct unnest(c.slices || v.slice::bigint)) "
            "from (values %s) v (tenant_id, slice, ref_slice) "
            "where c.tenant_id = v.tenant_id and c.state = 'incomplete' and c.slices @> array[v.ref_slice::bigint]",
            list(voids.select("tenant", "slice", "ref_slice").unique().iter_rows()),
        )


def _followed(cursor: Any, numbered: pl.DataFrame, claims: pl.DataFrame) -> pl.DataFrame:
    """Records of the streams that are followed; where the others lie is written down."""
    streams = numbered.select(STREAM).unique().sort(STREAM)
    first = streams.group_by("tenant", maintain_order=True).head(STREAMS)
    if len(first) == len(streams):
        return numbered
    cursor.execute(
        "select distinct tenant_id, producer, incarnation from usage_checkpoint where tenant_id = any(%s)",
        (streams["tenant"].unique().to_list(),),
    )
    said = {(row["tenant"], *_stream(json.loads(row["data"]))) for row in claims.iter_rows(named=True)}
    claimed = pl.DataFrame(
        sorted({*cursor.fetchall(), *said}),
        schema={name: streams.schema[name] for name in STREAM},
        orient="row",
    )
    followed = pl.concat([first.select(STREAM), claimed])
    rest = (
        numbered.join(followed, on=STREAM, how="anti")
        .group_by("tenant", "slice")
        .agg(pl.col("received").max())
    )
    execute_values(
        cursor,
        "insert into usage_producer_slice (tenant_id, producer, incarnation, slice, first_sequence, last_sequence, received) "
        "values %s on conflict (tenant_id, producer, incarnation, slice) do nothing",
        [(tenant, REST, "", number, 1, LAST_SEQUENCE, received) for tenant, number, received in rest.rows()],
    )
    return numbered.join(followed, on=STREAM, how="semi")


def _stream(said: Mapping[str, Any]) -> tuple[str, str]:
    return said["producer"], said.get("incarnation", "")


def _note_records(cursor: Any, numbered: pl.DataFrame) -> None:
    by_slice = numbered.group_by(*STREAM, "slice").agg(
        first=pl.col("sequence").min(), last=pl.col("sequence").max(), received=pl.col("received").max()
    )
    rows = by_slice.select(*STREAM, "slice", "first", "last", "received").rows()
    execute_values(
        cursor,
        "insert into usage_producer_slice (tenant_id, producer, incarnation, slice, first_sequence, last_sequence, received) "
        "values %s on conflict (tenant_id, producer, incarnation, slice) do nothing",
        rows,
    )
    # Records of a range that was claimed before: late ones, repetitions, other events under the same number.
    execute_values(
        cursor,
        "update usage_checkpoint c set state = 'waiting', slices = array(select distinct unnest(c.slices || n.slices)) "
        "from (select tenant_id, producer, incarnation, min(first) as first, max(last) as last, array_agg(slice::bigint) as slices "
        "      from (values %s) v (tenant_id, producer, incarnation, slice, first, last, received) group by 1, 2, 3) n "
        "where (c.tenant_id, c.producer, c.incarnation) = (n.tenant_id, n.producer, n.incarnation) "
        "and c.last_sequence >= n.first and c.first_sequence <= n.last",
        rows,
    )
    streams = by_slice.group_by(STREAM).agg(
        pl.col("last").max(),
        begun=pl.col("received").min(),
        seen=pl.col("received").max(),
        number=pl.col("slice").max(),
    )
    execute_values(
        cursor,
        "insert into usage_producer as p (tenant_id, producer, incarnation, id, last_sequence, first_received, "
        "last_received, last_slice) values %s on conflict (tenant_id, producer, incarnation) do update set "
        "last_sequence = greatest(p.last_sequence, excluded.last_sequence), "
        "last_received = greatest(p.last_received, excluded.last_received), "
        "last_slice = greatest(p.last_slice, excluded.last_slice)",
        [(*row[:3], producer_id(row[:3]), *row[3:]) for row in streams.iter_rows()],
    )


def producer_id(stream: Iterable[str]) -> str:
    return f"upr_{derived_id('usage.producer', *stream)}"


def _note_claims(cursor: Any, claims: pl.DataFrame, ends: Ends) -> int:
    topic_id, offsets = ends()
    due = json.dumps({"topic_id": topic_id, "offsets": {str(p): end for p, end in offsets.items()}})
    rows = []
    for row in claims.iter_rows(named=True):
        said = json.loads(row["data"])
        checkpoint = f"uck_{derived_id('usage.checkpoint', row['topic_id'], str(row['partition']), str(row['offset']))}"
        rows.append((
            row["tenant"], checkpoint, *_stream(said), said["first"], said["last"],
            said["hash"], row["received"], row["slice"], due,
        ))  # fmt: skip
    execute_values(
        cursor,
        "insert into usage_checkpoint (tenant_id, id, producer, incarnation, first_sequence, last_sequence, hash, received, "
        "slice, due, slices) select v.*, array("
        "  select s.slice from usage_producer_slice s "
        "  where ((s.tenant_id, s.producer, s.incarnation) = (v.tenant_id, v.producer, v.incarnation) "
        # A stream that has sent a checkpoint is followed: what the others' slices hold of it came before that.
        f"  or ((s.tenant_id, s.producer) = (v.tenant_id, '{REST}') and s.received > v.received - interval '{FORGET_REST}' "
        "    and not exists (select from usage_checkpoint k "
        "      where (k.tenant_id, k.producer, k.incarnation) = (v.tenant_id, v.producer, v.incarnation)))) "
        "  and s.last_sequence >= v.first and s.first_sequence <= v.last "
        # What was claimed before is known by its checkpoint only.
        "  union select unnest(c.slices) from usage_checkpoint c "
        "  where (c.tenant_id, c.producer, c.incarnation) = (v.tenant_id, v.producer, v.incarnation) "
        "  and c.last_sequence >= v.first and c.first_sequence <= v.last) "
        "from (values %s) v (tenant_id, id, producer, incarnation, first, last, hash, received, slice, due) "
        "on conflict (tenant_id, id) do nothing",
        rows,
        template="(%s, %s, %s, %s, %s::bigint, %s::bigint, %s, %s::timestamptz, %s::bigint, %s::jsonb)",
    )
    # A producer of which nothing arrived at all is known by its checkpoint.
    execute_values(
        cursor,
        "insert into usage_producer (tenant_id, producer, incarnation, id, last_sequence, first_received, last_received, "
        "last_slice) values %s on conflict (tenant_id, producer, incarnation) do nothing",
        [
            (*stream, producer_id(stream), 0, received, received, number)
            for (*stream, received, number) in {
                (row[0], row[2], row[3]): (row[0], row[2], row[3], row[7], row[8]) for row in rows
            }.values()
        ],
    )
    return len(rows)


def _judge(cursor: Any, lake: Lake, events: DeltaTable, ends: Ends, done: Reconciled) -> None:
    """Judge every checkpoint that waits and whose events are due."""
    cursor.execute(
        "select tenant_id, id, producer, incarnation, first_sequence, last_sequence, hash, slices, due, named_at "
        "from usage_checkpoint where state = 'waiting' order by slice, id"
    )
    found = cursor.fetchall()
    others = {row[8]["topic_id"] for row in found} - {landed_from(events)}
    # Of a topic that is no more nothing comes; of one made anew all will, once somebody accepted it.
    gone = others - {ends()[0]} if others else others
    waiting = [row for row in found if row[8]["topic_id"] in gone or _is_due(events, row[8])]
    by_stream: dict[Key, list[Any]] = {}
    for row in waiting:
        by_stream.setdefault((row[0], row[2], row[3]), []).append(row)
    for stream, checkpoints in by_stream.items():
        rows, voided = _landed(lake, events, stream, {each for row in checkpoints for each in row[7]})
        for row in checkpoints:
            verdict = judge(Claim(row[4], row[5], row[6]), rows, voided)
            complete = verdict.state == COMPLETE
            named = json.dumps({"missing": verdict.missing, "doubled": verdict.doubled})
            cursor.execute(
                "update usage_checkpoint set state = %s, missing = %s, doubled = %s, repeated = %s, missing_events = %s, "
                "named = case when %s then named else coalesce(named, %s::jsonb) end, "
                "named_at = case when %s then named_at else coalesce(named_at, clock_timestamp()) end, "
                "closed_at = case when %s and named_at is not null then coalesce(closed_at, clock_timestamp()) end "
                "where tenant_id = %s and id = %s",
                (
                    verdict.state, ranges_json(verdict.missing), ranges_json(verdict.doubled),
                    ranges_json(verdict.repeated), verdict.missing_events, complete, named, complete, complete, row[0], row[1],
                ),
            )  # fmt: skip
            done.judged += 1
            done.closed += complete and row[9] is not None
            if not complete and row[9] is None:
                done.named.append(row[1])
        _forget_claimed(cursor, stream)


def _is_due(events: DeltaTable, due: Mapping[str, Any]) -> bool:
    offsets = {int(partition): end for partition, end in due["offsets"].items()}
    landed = landed_offsets(events, due["topic_id"], max(offsets, default=-1) + 1)
    return all(landed[partition] >= end for partition, end in offsets.items())


def _landed(
    lake: Lake, events: DeltaTable, stream: Key, slices: set[int]
) -> tuple[pl.DataFrame, pl.DataFrame]:
    """Records of a stream in these slices, and the places that voids in them take out."""
    wanted = {name: _READ[name] for name in (*COLUMNS, "kind", "ref_slice", "ref_partition", "ref_offset")}
    if not slices:
        empty = pl.DataFrame(schema=wanted)
        return empty.select(COLUMNS), empty.select("slice", "partition", "offset")
    tenant, producer, incarnation = stream
    theirs = (pl.col("producer") == producer) & (pl.col("incarnation") == incarnation)
    void = (pl.col("kind") == schema.VOID) & (pl.col("fate") == COUNTED)
    rows = pl.concat(
        read(
            lake, schema.EVENTS, events, wanted, within=("slice", low, high),
            where=pl.col("slice").is_between(low, high) & (pl.col("tenant") == tenant) & (theirs | void),
        )
        for low, high in _runs(sorted(slices))
    )  # fmt: skip
    taken = rows.filter(pl.col("kind") == schema.VOID).select(
        slice="ref_slice", partition="ref_partition", offset="ref_offset"
    )
    return rows.filter(pl.col("kind") == schema.USAGE).select(COLUMNS), taken


def _runs(numbers: list[int]) -> Iterable[tuple[int, int]]:
    """Ascending numbers as runs without gaps."""
    first = before = numbers[0]
    for number in numbers[1:]:
        if number > before + 1:
            yield first, before
            first = number
        before = number
    yield first, before


def _forget_claimed(cursor: Any, stream: Key) -> None:
    """Records all of whose numbers are claimed: their checkpoints know the slices themselves."""
    cursor.execute(
        "delete from usage_producer_slice s where (s.tenant_id, s.producer, s.incarnation) = (%s, %s, %s) "
        "and int8multirange(int8range(s.first_sequence, s.last_sequence, '[]')) <@ coalesce("
        "  (select range_agg(int8range(c.first_sequence, c.last_sequence, '[]')) from usage_checkpoint c "
        "   where (c.tenant_id, c.producer, c.incarnation) = (s.tenant_id, s.producer, s.incarnation) "
        "   and c.last_sequence >= s.first_sequence and c.first_sequence <= s.last_sequence), '{}'::int8multirange)",
        stream,
    )
