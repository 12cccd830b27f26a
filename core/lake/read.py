"""Reading only the files that can hold what is asked for, by the statistics in the Delta log."""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

import polars as pl
from deltalake import DeltaTable

from core.lake import Lake


def read(
    lake: Lake,
    table: str,
    handle: DeltaTable,
    schema: Mapping[str, pl.DataType | type[pl.DataType]],
    *,
    where: pl.Expr,
    within: tuple[str, Any, Any],
    part: Mapping[str, str] | None = None,
    first: pl.Expr | None = None,
) -> pl.DataFrame:
    """Rows with `where`, from the files whose statistics allow a value in [low, high].

    Args:
        schema: the columns wanted, with their types.
        within: (column with statistics, low, high); a file without statistics is read.
        part: values of partition columns; those columns themselves cannot be asked for.
        first: as in `scan`.
    """
    found = scan(lake, table, handle, where=where, within=(within,), part=part, first=first)
    if found is None:
        return pl.DataFrame(schema=dict(schema))
    return found.select(pl.col(name).cast(kind) for name, kind in schema.items()).collect()


def scan(
    lake: Lake,
    table: str,
    handle: DeltaTable,
    *,
    where: pl.Expr,
    within: Sequence[tuple[str, Any, Any]],
    part: Mapping[str, str] | None = None,
    path: str | None = None,
    first: pl.Expr | None = None,
) -> pl.LazyFrame | None:
    """The same, not read yet and with all columns; None where no file can hold such a row.

    Args:
        within: as in `read`; a file must allow all of them.
        path: name of a column that says which file of the table a row stands in.
        first: a comparison of one column with one value that few rows pass: of the others nothing is read but this
            column and those of `within`, by whose statistics row groups are left out. As part of `where` it would
            save nothing: all columns of one condition are read of all rows (four times the CPU time for a tenant
            with a thousandth of the rows, measured).
    """
    actions = pl.DataFrame(handle.get_add_actions(flatten=True))
    for column, low, high in within:
        minimum, maximum = f"min.{column}", f"max.{column}"
        if {minimum, maximum} <= set(actions.columns):
            possible = (pl.col(minimum) <= high) & (pl.col(maximum) >= low)
            actions = actions.filter(possible.fill_null(value=True))
    for name, value in (part or {}).items():
        actions = actions.filter(pl.col(f"partition.{name}") == value)
    if actions.is_empty():
        return None
    rows = scan_files(lake, table, actions["path"].sort(), path=path)
    if first is not None:
        # What changes nothing keeps the two conditions from being made one.
        near = [first, *(pl.col(column).is_between(low, high) for column, low, high in within)]
        rows = rows.filter(*near).map_batches(
            _same, predicate_pushdown=False, projection_pushdown=True, streamable=True
        )
    return rows.filter(where)


def _same(rows: pl.DataFrame) -> pl.DataFrame:
    return rows


def scan_files(lake: Lake, table: str, files: Iterable[str], *, path: str | None = None) -> pl.LazyFrame:
    """Rows of some files of a table, at least one, named as the Delta log names them; `path` as in `scan`."""
    root = f"{lake.uri(table)}/"
    frame = pl.scan_parquet(
        [f"{root}{file}" for file in files], storage_options=lake.options() or None, include_file_paths=path
    )
    return frame if path is None else frame.with_columns(pl.col(path).str.strip_prefix(root))


def spans(handle: DeltaTable, column: str, low: int, high: int, *, rows: int) -> Iterator[tuple[int, int]]:
    """Cut [low, high] of an integer column into pieces of about `rows` rows at most, by the log alone.

    Whoever reads piece by piece needs no more memory however much there is. A piece is at least one value.
    """
    actions = pl.DataFrame(handle.get_add_actions(flatten=True))
    minimum, maximum = pl.col(f"min.{column}"), pl.col(f"max.{column}")
    # Rows of a file of several values are taken to be spread evenly over them.
    files = actions.select(first=minimum, last=maximum, each=pl.col("num_records") / (maximum - minimum + 1))
    start, held = low, 0.0
    for value in range(low, high + 1):
        here = float(files.filter(pl.col("first") <= value, pl.col("last") >= value)["each"].sum())
        if value > start and held + here > rows:
            yield start, value - 1
            start, held = value, 0.0
        held += here
    if start <= high:
        yield start, high
