"""The price book, every row that was ever recorded."""

from typing import TYPE_CHECKING

from assets.resources import Platform
from core.meters import METERS
from core.prices import MODELS
from quality.suites.reading import ask, said
from quality.suites.suite import SAMPLE, Expectation, Suite, between, holds, matches, one_of, present, unique

if TYPE_CHECKING:
    import polars as pl

QUERY = f"""
select id, revision, tenant_id as tenant, meter, dimensions::text as dimensions, unit_price, per, currency,
       valid_from, valid_to, recorded_at, model, included, minimum, jsonb_array_length(tiers) as tiers,
       tiers -> -1 ->> 'up_to' is null as open_end
from price order by revision desc limit {SAMPLE}
"""


def newest(platform: Platform) -> "pl.DataFrame | None":
    """The newest rows of the book."""
    found = ask(platform.database, QUERY)
    return None if found.is_empty() else found


def prepared(rows: "pl.DataFrame") -> "pl.DataFrame":
    """Rules over several columns as columns of `yes` and `no`. Pure."""
    import polars as pl  # noqa: PLC0415

    start, end = (pl.col(name).cast(pl.Datetime("us", "UTC")) for name in ("valid_from", "valid_to"))
    later = rows.sort("revision")["recorded_at"]
    return rows.with_columns(
        holds_from_full_hours=said(
            (start == start.dt.truncate("1h")) & (end.is_null() | (end == end.dt.truncate("1h")))
        ),
        ends_after_it_begins=said(end.is_null() | (end > start)),
        tiers_fit_the_model=said(
            (pl.col("tiers") > 0)
            == pl.col("model").is_in([name for name, model in MODELS.items() if model.tiered])
        ),
        last_tier_has_no_end=said(pl.col("open_end")),
        recorded_in_order=pl.lit("yes" if later.is_sorted() else "no"),
        one_currency=pl.lit("yes" if rows["currency"].n_unique() == 1 else "no"),
    )


EXPECTATIONS: tuple[Expectation, ...] = (
    unique(["id"], "a row has an id of its own"),
    unique(["revision"], "revisions order the book"),
    present("tenant", "a price is somebody's or everybody's (`*`)"),
    one_of("meter", sorted(METERS), "a price of a meter that does not exist charges nothing"),
    between("unit_price", 0, None, "a negative price would pay the customer"),
    between("per", 1, None, "a price is for at least one unit"),
    one_of("model", sorted(MODELS), "usage under another model cannot be rated, and no invoice made"),
    between("included", 0, None, "what is free cannot be less than nothing"),
    between("minimum", 0, None, "a negative minimum would pay the customer"),
    holds("tiers_fit_the_model", "only graduated and volume prices have tiers, and they have some"),
    holds("last_tier_has_no_end", "a quantity behind the last tier would have no price"),
    matches("currency", "^[A-Z]{3}$", "ISO 4217"),
    holds("one_currency", "an installation bills in one currency"),
    holds("holds_from_full_hours", "usage is priced by the hour it lies in"),
    holds("ends_after_it_begins", "a price that never holds is a mistake"),
    holds("recorded_in_order", "the book is append-only: what is newer was recorded later"),
)

SUITE = Suite("usage_prices", "usage_cells", "the price book", newest, prepared, EXPECTATIONS)
