"""Aggregations in columns: what events add to their cells, and what cells are (`core.aggregation`)."""

import json
from collections.abc import Callable, Sequence

import polars as pl

from assets.usage import schema
from core.aggregation import grouped, units
from core.contracts.usage import dimensions_text
from core.decimals import from_nano
from core.ids import identity
from core.meters import METERS, Aggregation, Meter, names, not_summable

PLACE = ["slice", "topic_id", "partition", "offset"]
NAMED = {name: schema.EVENTS_SCHEMA[name] for name in (*PLACE, "identity", "data")}
"""What `measured` needs beside the columns of a roll-up where a latest value is asked for."""


class AggregationChangedError(Exception):
    """Usage was rolled up by an aggregation that its meter has no more; values of both cannot be mixed."""


def unusual(meters: pl.Series) -> list[str]:
    """Those of the meters whose cells are not just the sums of their quantities."""
    known = {name for name, meter in METERS.items() if meter.aggregation is not Aggregation.SUM}
    return [name for name in meters.unique().cast(pl.String).drop_nulls() if name in known] if known else []


def needs_identity(meters: pl.Series) -> list[str]:
    """Those of the meters whose elements name events."""
    latest = names(Aggregation.LATEST)
    return [name for name in latest if (meters == name).any()]


def measured(rows: pl.DataFrame) -> pl.DataFrame:
    """Counted rows of unusual meters as they stand in cells: `quantity` as it is added up, `dimensions`
    without the measured one, and `element`.

    Args:
        rows: tenant, meter, dimensions, quantity, event_time, kind, and for a latest value identity, data.
    """
    rows = rows.with_columns(pl.col("tenant", "meter", "dimensions", "kind").cast(pl.String))
    parts = [_measured(METERS[str(name)], part) for (name,), part in rows.group_by("meter")]
    return pl.concat(parts)


def _measured(meter: Meter, rows: pl.DataFrame) -> pl.DataFrame:
    sign = pl.when(pl.col("kind") == schema.VOID).then(-1).otherwise(1)
    quantity, element = pl.col("quantity"), pl.lit(None, pl.String)
    match meter.aggregation:
        case Aggregation.COUNT:
            quantity = sign.cast(schema.QUANTITY)
        case Aggregation.WEIGHTED_SUM:
            rows = rows.with_columns(quantity=weighted(meter, rows["quantity"], rows["dimensions"]))
        case Aggregation.MAX | Aggregation.MIN:
            element = pl.col("quantity").abs().cast(pl.String).str.zfill(28)
        case Aggregation.LATEST:
            time = pl.col("event_time").dt.strftime("%Y-%m-%dT%H:%M:%S.%6fZ")
            rows = rows.with_columns(named=pl.Series(_identities(rows), dtype=pl.String))
            element = pl.concat_str(time, pl.lit(" "), "named")
        case _:
            element = pl.col("dimensions").replace_strict(
                _each(rows, lambda dimensions: dimensions[meter.measured]), return_dtype=pl.String
            )
    columns = [name for name in rows.columns if name != "named"]
    groups = {} if not meter.measured else _each(rows, lambda found: dimensions_text(grouped(meter, found)))
    return rows.with_columns(
        element=element,
        quantity=quantity.cast(schema.QUANTITY),
        dimensions=pl.col("dimensions").replace_strict(groups, return_dtype=pl.String)
        if groups
        else pl.col("dimensions"),
    ).select(*columns, "element")


def _each(rows: pl.DataFrame, of: Callable[[dict[str, str]], str]) -> dict[str, str]:
    return {text: of(json.loads(text)) for text in rows["dimensions"].unique()}


def _identities(rows: pl.DataFrame) -> list[str]:
    """Of each row the identity of its event, a void's that of the one it takes out, in hex."""
    found = []
    for kind, tenant, own, data in rows.select("kind", "tenant", "identity", "data").iter_rows():
        if kind == schema.VOID:
            reference = json.loads(data)
            found.append(identity(tenant, reference["source"], reference["id"]).hex())
        else:
            found.append(own.hex())
    return found


def weighted(meter: Meter, quantities: pl.Series, dimensions: pl.Series) -> pl.Series:
    """Quantities times their weights, exactly; negative where the quantity is."""
    found = []
    for quantity, text in zip(quantities, dimensions, strict=True):
        product = from_nano(units(meter, f"{abs(quantity):f}", json.loads(text)))
        found.append(-product if quantity < 0 else product)
    return pl.Series("quantity", found, dtype=schema.QUANTITY)


def standing(rows: pl.DataFrame, keys: Sequence[str]) -> pl.DataFrame:
    """Elements of cells that have events, as absolute rows: keys, element, quantity (what each is worth), events.

    Args:
        rows: keys (`meter` among them), element, quantity, events; of any number of slices.

    Raises:
        AggregationChangedError
    """
    held = rows.filter(pl.col("meter").is_in(not_summable()))
    if held["element"].null_count():
        changed = sorted(held.filter(pl.col("element").is_null())["meter"].unique())
        raise AggregationChangedError(
            f"{', '.join(changed)}: usage that is rolled up holds sums of this meter, which the registry no longer adds "
            "up; replay it as a new generation (`headrace replay run`), or give the meter another name"
        )
    folded = held.group_by(*keys, "element").agg(pl.col("quantity", "events").sum())
    kind = pl.col("meter").replace_strict(
        {name: meter.aggregation.value for name, meter in METERS.items()}, return_dtype=pl.String
    )
    value = (
        pl.when(kind == Aggregation.UNIQUE_COUNT.value)
        .then(pl.lit("1"))
        .when(kind == Aggregation.LATEST.value)
        .then(pl.col("quantity").cast(pl.String))
        .otherwise("element")
    )
    return folded.filter(pl.col("events") > 0).with_columns(quantity=value.cast(schema.QUANTITY))


def deciding(rows: pl.DataFrame, keys: Sequence[str]) -> pl.DataFrame:
    """Standing elements of pieces that decide what a piece is: the greatest, the smallest, or of a unique count each.

    Args:
        rows: keys (`meter` among them), element, and whatever else.
    """
    lowest = pl.col("element") == pl.col("element").min().over(keys)
    highest = pl.col("element") == pl.col("element").max().over(keys)
    meter = pl.col("meter")
    return rows.filter(
        meter.is_in(names(Aggregation.UNIQUE_COUNT))
        | (meter.is_in(names(Aggregation.MIN)) & lowest)
        | (meter.is_in(names(Aggregation.MAX, Aggregation.LATEST)) & highest)
    )


def grouped_dimensions(name: str | None) -> pl.Expr:
    """Of landed rows of a meter the dimensions that their cells have."""
    meter = None if name is None else METERS.get(name)
    written = pl.col("dimensions")
    if meter is None or not meter.measured:
        return written
    return written.map_elements(
        lambda text: dimensions_text(grouped(meter, json.loads(text))), return_dtype=pl.String
    )


def cells(rows: pl.DataFrame, keys: Sequence[str]) -> pl.DataFrame:
    """Absolute cells: keys, quantity, events. A cell whose events were all voided has quantity 0.

    Args:
        rows: as for `standing`.

    Raises:
        AggregationChangedError
    """
    others = not_summable()
    special = pl.col("meter").is_in(others)
    if rows["element"].null_count() == len(rows) and not rows["meter"].is_in(others).any():
        return rows.group_by(*keys).agg(pl.col("quantity", "events").sum())
    plain = rows.filter(~special).group_by(*keys).agg(pl.col("quantity", "events").sum())
    held = standing(rows, keys)
    parts = []
    for aggregation, value in _VALUES.items():
        part = held.filter(pl.col("meter").is_in(names(aggregation)))
        parts.append(part.group_by(*keys).agg(value.cast(schema.QUANTITY).alias("value")))
    events = rows.filter(special).group_by(*keys).agg(pl.col("events").sum())
    valued = events.join(pl.concat(parts), on=list(keys), how="left")
    zero = pl.lit("0").cast(schema.QUANTITY)
    return pl.concat([plain, valued.select(*keys, quantity=pl.col("value").fill_null(zero), events="events")])


_ORDERED = pl.col("quantity").sort_by("element")
_VALUES = {
    Aggregation.MAX: _ORDERED.last(),
    Aggregation.MIN: _ORDERED.first(),
    Aggregation.LATEST: _ORDERED.last(),
    Aggregation.UNIQUE_COUNT: pl.col("element").n_unique(),
}
