"""What a suite is. Plain data: neither Great Expectations nor pandas is needed to read or list one."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from assets.resources import Platform

if TYPE_CHECKING:
    import polars as pl

SAMPLE = 100_000
"""Rows a suite looks at, the newest ones: a frame of pandas lies in memory as a whole."""


@dataclass(frozen=True, slots=True)
class Expectation:
    """One rule: an expectation of Great Expectations by its type, and its arguments.

    `because` says what a red one means to whoever reads the data.
    """

    kind: str
    because: str
    arguments: Mapping[str, Any] = field(default_factory=dict)

    @property
    def name(self) -> str:
        """What is expected of which column, for people."""
        about = ", ".join(f"{key}={value}" for key, value in self.arguments.items() if "column" in key)
        return f"{self.kind}({about})"


@dataclass(frozen=True, slots=True)
class Suite:
    """Rules for the newest rows of an asset.

    `rows` reads at most `SAMPLE` rows; None where there is nothing yet. `prepared` says rules over several columns
    as columns of `yes` and `no`, and is pure.
    """

    name: str
    asset: str
    what: str
    rows: Callable[[Platform], "pl.DataFrame | None"]
    prepared: Callable[["pl.DataFrame"], "pl.DataFrame"]
    expectations: tuple[Expectation, ...]

    def sample(self, platform: Platform) -> "pl.DataFrame | None":
        """What is judged."""
        found = self.rows(platform)
        return None if found is None else self.prepared(found)


@dataclass(frozen=True, slots=True)
class Verdict:
    """What judging a sample gave. `failed` holds a line for each rule that does not hold; no line quotes data."""

    rows: int
    judged: int
    failed: tuple[str, ...]

    @property
    def holds(self) -> bool:
        return not self.failed


def between(column: str, low: int, high: int | None, because: str) -> Expectation:
    arguments = {"column": column, "min_value": low} | ({} if high is None else {"max_value": high})
    return Expectation("ExpectColumnValuesToBeBetween", because, arguments)


def one_of(column: str, values: list[str], because: str) -> Expectation:
    return Expectation("ExpectColumnValuesToBeInSet", because, {"column": column, "value_set": values})


def present(column: str, because: str) -> Expectation:
    return Expectation("ExpectColumnValuesToNotBeNull", because, {"column": column})


def matches(column: str, regex: str, because: str) -> Expectation:
    return Expectation("ExpectColumnValuesToMatchRegex", because, {"column": column, "regex": regex})


def unique(columns: list[str], because: str) -> Expectation:
    if len(columns) == 1:
        return Expectation("ExpectColumnValuesToBeUnique", because, {"column": columns[0]})
    return Expectation("ExpectCompoundColumnsToBeUnique", because, {"column_list": columns})


def holds(column: str, because: str) -> Expectation:
    """A column of truths that the sample has computed: rules over several columns are plain expressions."""
    return one_of(column, ["yes"], because)
