"""The newest landed records, with their fates."""

from typing import TYPE_CHECKING

from assets.resources import Platform
from core.meters import METERS
from quality.suites.reading import said
from quality.suites.suite import SAMPLE, Expectation, Suite, between, holds, one_of, present, unique

if TYPE_CHECKING:
    import polars as pl

COLUMNS = (
    "slice", "topic_id", "partition", "offset", "received", "tenant", "event_id", "identity", "meter", "quantity",
    "event_time", "importid", "dimensions", "kind", "fate", "code", "winner_offset",
)  # fmt: skip


def newest(platform: Platform) -> "pl.DataFrame | None":
    """The newest whole slices of `usage_events`, as far as they fit; of a larger one its last records."""
    import polars as pl  # noqa: PLC0415

    from assets.slices.progress import SLICE  # noqa: PLC0415
    from assets.usage.schema import EVENTS, EVENTS_SCHEMA  # noqa: PLC0415
    from core.lake.read import read, spans  # noqa: PLC0415

    lake = platform.lake()
    handle = lake.open(EVENTS)
    last = 0 if handle is None else handle.transaction_version(SLICE) or 0
    if handle is None or last == 0:
        return None
    first, _ = list(spans(handle, "slice", max(1, last - 15), last, rows=SAMPLE))[-1]
    found = read(
        lake, EVENTS, handle, {name: EVENTS_SCHEMA[name] for name in COLUMNS},
        where=pl.col("slice").is_between(first, last), within=("slice", first, last),
    )  # fmt: skip
    return found.sort("slice", "partition", "offset").tail(SAMPLE)


def prepared(rows: "pl.DataFrame") -> "pl.DataFrame":
    """Rules over several columns as columns of `yes` and `no`. Pure."""
    import polars as pl  # noqa: PLC0415

    fate, unreadable = pl.col("fate"), pl.col("fate") == "rejected"
    return rows.with_columns(
        identity_has_16_bytes=said(unreadable | (pl.col("identity").bin.size() == 16)),
        readable_is_whole=said(
            unreadable
            | pl.all_horizontal(pl.col(name).is_not_null() for name in ("event_id", "kind", "event_time"))
        ),
        counted_has_a_quantity=said(
            (fate != "counted") | (pl.col("kind") == "checkpoint") | pl.col("quantity").is_not_null()
        ),
        unusual_has_a_code=said((fate.is_in(["counted", "duplicate"])) | pl.col("code").is_not_null()),
        duplicate_names_its_winner=said((fate != "duplicate") | pl.col("winner_offset").is_not_null()),
        live_is_not_ahead=said(
            (fate != "counted")
            | (pl.col("importid").fill_null("") != "")
            | (pl.col("event_time") <= pl.col("received").dt.offset_by("5m"))
        ),
        # Only a void takes out.
        quantity=pl.when(pl.col("kind") == "void")
        .then(-pl.col("quantity"))
        .otherwise("quantity")
        .fill_null(0),
        meter=pl.col("meter").fill_null(next(iter(METERS))),
    ).drop("identity", "code", "importid", "winner_offset", "kind")


EXPECTATIONS: tuple[Expectation, ...] = (
    one_of("fate", ["counted", "duplicate", "quarantined", "rejected"], "every record has one of four fates"),
    unique(["topic_id", "partition", "offset"], "a record landed once"),
    present("tenant", "each record is booked on somebody, `-` for nobody"),
    between("offset", 0, None, "offsets count from 0"),
    between(
        "quantity",
        0,
        10**18,
        "the contract allows 18 digits before the point; a void, and nothing else, is negative",
    ),
    one_of("meter", sorted(METERS), "what is not in the registry of meters was rejected"),
    holds("identity_has_16_bytes", "an identity is 16 bytes of a hash"),
    holds("readable_is_whole", "a record that could be read has id, kind and time"),
    holds("counted_has_a_quantity", "what is counted has a quantity, a checkpoint apart"),
    holds("unusual_has_a_code", "what is not counted says why"),
    holds("duplicate_names_its_winner", "a duplicate names the record that was counted"),
    holds("live_is_not_ahead", "a live event is at most five minutes ahead of the log's clock"),
)

SUITE = Suite("usage_events", "usage_events", "the newest landed records", newest, prepared, EXPECTATIONS)
