"""Suites: what holds of data that somebody reads, said as data and judged by Great Expectations.

A gate stops a run within milliseconds; a suite looks at a bounded sample on a clock and shows analysts what
they may rely on. Adding one is adding a module with a `SUITE` here.
"""

from quality.suites.suite import Expectation, Suite, Verdict
from quality.suites.usage_cells import SUITE as USAGE_CELLS
from quality.suites.usage_events import SUITE as USAGE_EVENTS
from quality.suites.usage_prices import SUITE as USAGE_PRICES
from quality.suites.usage_snapshot import SUITE as USAGE_SNAPSHOT

SUITES: tuple[Suite, ...] = (USAGE_EVENTS, USAGE_CELLS, USAGE_SNAPSHOT, USAGE_PRICES)

__all__ = ["SUITES", "Expectation", "Suite", "Verdict"]
