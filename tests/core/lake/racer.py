"""Commits slice after slice as fast as it can: `python -m tests.core.lake.racer URL NAME LAST`.

Prints the slices it has won. Starts when a line comes in, so that racers begin together.
"""

import sys

import polars as pl

from core.lake import Lake
from core.lake.commit import StaleError, commit
from core.settings import ObjectSettings


def main() -> None:
    url, name, last = sys.argv[1], sys.argv[2], int(sys.argv[3])
    lake, number, won = Lake(ObjectSettings(objects_url=url)), 1, list[int]()
    sys.stdout.write("ready\n")
    sys.stdout.flush()
    sys.stdin.readline()
    while number <= last:
        rows = pl.DataFrame({"slice": [number] * 3, "who": [name] * 3})
        try:
            commit(lake, "race", rows, {"slice": number}, {"slice": number - 1 or None})
            won.append(number)
        except StaleError as stale:
            number = stale.found["slice"] or 0
        number += 1
    sys.stdout.write(f"{won}\n")


if __name__ == "__main__":
    main()
