"""Judging a sample by a suite: the only place that imports Great Expectations, and only when one runs.

The import costs 7 CPU-seconds and 234 MB (measured), so all suites are judged by one run.
"""

import os
import warnings
from typing import TYPE_CHECKING, Any

from quality.suites import Suite, Verdict

if TYPE_CHECKING:
    import polars as pl


class SuiteError(Exception):
    """A rule could not be judged at all: the suite and the data do not fit together."""


def judge(suite: Suite, rows: "pl.DataFrame") -> Verdict:
    """Hold `rows` against every rule of `suite`.

    Raises:
        SuiteError: a rule names a column that is not there, or cannot be computed.
    """
    gx = _great_expectations()
    context = gx.get_context(mode="ephemeral")
    context.variables.progress_bars = {"globally": False}
    asset = context.data_sources.add_pandas(suite.name).add_dataframe_asset(suite.name)
    whole = asset.add_batch_definition_whole_dataframe("newest")
    batch = whole.get_batch(batch_parameters={"dataframe": rows.to_pandas()})
    expected = [getattr(gx.expectations, each.kind)(**each.arguments) for each in suite.expectations]
    failed = []
    # One at a time: two rules about one column come back in an order of their own.
    for each, expectation in zip(suite.expectations, expected, strict=True):
        found = batch.validate(expectation, result_format="SUMMARY")
        if _raised(found.exception_info):
            raise SuiteError(f"{suite.name}: {each.name} cannot be judged; the sample has {rows.columns}")
        if not found.success:
            failed.append(f"{each.name}: {_how_many(found.result)}; {each.because}")
    return Verdict(len(rows), len(expected), tuple(failed))


def _raised(info: Any) -> bool:
    """Whether computing a rule failed: said once for the rule, or for each metric below it."""
    return any(each is True or (isinstance(each, dict) and _raised(each)) for each in info.values())


def _how_many(result: Any) -> str:
    """Counts only: the values are the tenants'."""
    unexpected = result.get("unexpected_count")
    return (
        "does not hold"
        if unexpected is None
        else f"{unexpected} of {result.get('element_count')} rows differ"
    )


def _great_expectations() -> Any:
    os.environ["GX_ANALYTICS_ENABLED"] = "false"
    with warnings.catch_warnings():
        # pyparsing inside imports `sre_constants`, which is deprecated; nothing of ours.
        warnings.simplefilter("ignore", DeprecationWarning)
        import great_expectations  # noqa: PLC0415
    return great_expectations
