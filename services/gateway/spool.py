"""Requests are counted on the local disk before they are answered: a line each, `tenant \\t route \\t 2xx`."""

from collections import Counter
from pathlib import Path

from services.common import spool

Cell = tuple[str, str, str]
"""Tenant, route, class of the status code (`2xx`)."""


class Spool(spool.Spool):
    """The counts of this process."""

    def record(self, tenant: str, route: str, code_class: str) -> None:
        """Count one request.

        Raises:
            OSError: it is not counted (disk full); the request must not be answered as if it were.
        """
        self.append(f"{tenant}\t{route}\t{code_class}".encode())


def read_segment(path: Path) -> tuple[int, Counter[Cell]]:
    """Milliseconds since 1970 at which the segment began, and its counts. Raises: ValueError."""
    counts: Counter[Cell] = Counter()
    for line in spool.lines_of(path):
        tenant, route, code_class = line.decode().split("\t")
        counts[tenant, route, code_class] += 1
    return int(path.name.partition("-")[0]), counts
