"""What a replay changes: which events get another fate, which cells another value, which charges another amount."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import polars as pl

from assets.usage import schema
from assets.usage.asof import KEYS, cells_of, rows_as_of
from assets.usage.snapshot import charges, rateable
from core.decimals import EXACT, canonical
from core.lake import Lake
from core.lake.read import read, spans
from core.prices.book import Price

ROWS_AT_ONCE = 2_000_000
PLACE = ("slice", "topic_id", "partition", "offset")
COMPARED = (
    "fate", "code", "tenant", "source", "event_id", "kind", "meter", "quantity", "event_time", "subject", "dimensions",
)  # fmt: skip
"""Columns whose difference is a difference of the event."""
SAMPLES = 1_000


@dataclass(frozen=True, slots=True)
class Difference:
    """events: tenant, fate, code and new_fate, new_code with how many records; samples: the first of them by
    their coordinates. cells: tenant, meter, hour, dimensions, quantity, events and new_quantity, new_events of
    each that differs. charges: tenant, meter, price, amount and new_amount of each that differs; both None for
    a tenant that cannot be rated."""

    through: int
    events: pl.DataFrame
    samples: pl.DataFrame
    cells: pl.DataFrame
    charges: list[dict[str, Any]]

    def report(self) -> dict[str, Any]:
        """As JSON: quantities and amounts are text, times RFC 3339; at most `SAMPLES` of each list."""
        cells = self.cells.head(SAMPLES).with_columns(
            pl.col("hour").dt.strftime("%Y-%m-%dT%H:%M:%SZ"),
            pl.col("quantity", "new_quantity").cast(pl.String),
        )
        return {
            "through_slice": self.through,
            "events": self.events.to_dicts(),
            "event_samples": self.samples.to_dicts(),
            "cells_that_differ": len(self.cells),
            "cells": cells.to_dicts(),
            "charges_that_differ": len(self.charges),
            "charges": self.charges[:SAMPLES],
        }


def difference(
    old: Lake, new: Lake, through: int, prices: Sequence[Price], new_prices: Sequence[Price]
) -> Difference:
    """Compare two generations up to a slice that both hold.

    Args:
        prices, new_prices: the book as it is, and the one that the new charges are asked with.
    """
    summed, samples = list[pl.DataFrame](), list[pl.DataFrame]()
    for low, high in _spans(old, through):
        changed = _events(old, new, low, high)
        groups = ["tenant", "fate", "code", "new_fate", "new_code"]
        summed.append(changed.group_by(groups).agg(records=pl.len().cast(pl.Int64)))
        if sum(map(len, samples)) < SAMPLES:
            samples.append(changed.select(*PLACE, *groups).head(SAMPLES))
    events = pl.concat(summed).group_by(pl.exclude("records")).agg(pl.col("records").sum())
    before, after = rows_as_of(old, through), rows_as_of(new, through)
    return Difference(
        through,
        events.sort("records", "tenant", descending=[True, False]),
        pl.concat(samples).head(SAMPLES),
        _cells(cells_of(before), cells_of(after)),
        _charges(rateable(before), rateable(after), prices, new_prices),
    )


def _spans(lake: Lake, through: int) -> list[tuple[int, int]]:
    handle = lake.open(schema.EVENTS)
    assert handle is not None
    return list(spans(handle, "slice", 1, through, rows=ROWS_AT_ONCE))


def _events(old: Lake, new: Lake, low: int, high: int) -> pl.DataFrame:
    """Rows that differ, with the new fate and code beside the old."""
    types = {name: schema.EVENTS_SCHEMA[name] for name in (*PLACE, *COMPARED)}
    sides = []
    for lake in (old, new):
        handle = lake.open(schema.EVENTS)
        assert handle is not None
        sides.append(
            read(
                lake, schema.EVENTS, handle, types,
                where=pl.col("slice").is_between(low, high), within=("slice", low, high),
            )
        )  # fmt: skip
    both = sides[0].join(
        sides[1].rename({name: f"new_{name}" for name in COMPARED}), on=PLACE, how="full", coalesce=True
    )
    differs = pl.any_horizontal(pl.col(name).ne_missing(pl.col(f"new_{name}")) for name in COMPARED)
    return both.filter(differs).sort(PLACE)


def _cells(before: pl.DataFrame, after: pl.DataFrame) -> pl.DataFrame:
    new = after.rename({"quantity": "new_quantity", "events": "new_events"})
    both = before.join(new, on=KEYS, how="full", coalesce=True).with_columns(
        pl.col("quantity", "new_quantity").fill_null(0), pl.col("events", "new_events").fill_null(0)
    )
    differs = (pl.col("quantity") != pl.col("new_quantity")) | (pl.col("events") != pl.col("new_events"))
    return both.filter(differs).sort("hour", "tenant", "meter", "dimensions")


def _charges(
    before: pl.DataFrame, after: pl.DataFrame, prices: Sequence[Price], new_prices: Sequence[Price]
) -> list[dict[str, Any]]:
    (old, unrated), (new, newly_unrated) = charges(before, prices), charges(after, new_prices)
    amounts: dict[tuple[str, str, str], list[Any]] = {}
    for side, lines in enumerate((old, new)):
        for each in lines:
            key = (each.tenant, each.line.price.meter, each.line.price.id)
            pair = amounts.setdefault(key, [None, None])
            pair[side] = EXACT.add(pair[side] or 0, each.line.amount_unrounded)
    found: list[dict[str, Any]] = [
        {
            "tenant": tenant,
            "meter": meter,
            "price": price,
            "amount": canonical(was) if was is not None else "0",
            "new_amount": canonical(now) if now is not None else "0",
        }
        for (tenant, meter, price), (was, now) in sorted(amounts.items())
        if (was or 0) != (now or 0)
    ]
    found += [
        {"tenant": tenant, "meter": None, "price": None, "amount": None, "new_amount": None}
        for tenant in sorted(unrated ^ newly_unrated)
    ]
    return found
