"""What an import is told of a file: where it comes from, and what its columns mean."""

from collections.abc import Mapping
from dataclasses import dataclass

from deploy.imports.times import Relative


class ImportFileError(Exception):
    """The file as a whole cannot be imported; the message says what to change."""


@dataclass(frozen=True, slots=True)
class Mapped:
    """What the columns of a CSV file mean, or the fields of JSON lines."""

    source: str
    time_column: str
    meters: Mapping[str, str]
    """Meter name to the column that holds its quantity."""
    columns: tuple[str, ...] = ()
    """Names for the columns of a CSV file without a header, in their order; an empty name is read over."""
    relative: Relative | None = None
    """Where times are numbers: what they count. Otherwise they are dates with a time of day."""
    round_quantities: bool = False
    """Round what has more than nine digits behind the point, half to even; else such a row is bad."""

    @property
    def named(self) -> tuple[str, ...]:
        """The columns that each row must have."""
        return (self.time_column, *self.meters.values())


@dataclass(frozen=True, slots=True)
class BadRow:
    """A row that was left out. `line` counts from 1, the header included."""

    line: int
    reason: str
