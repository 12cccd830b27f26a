"""The suites as asset checks, in one run: Great Expectations is imported once for all of them."""

from collections.abc import Iterator

import dagster as dg

from assets.resources import Platform
from quality.suites import SUITES, Suite


def _spec(suite: Suite) -> dg.AssetCheckSpec:
    rules = "\n".join(f"- {each.name}: {each.because}" for each in suite.expectations)
    return dg.AssetCheckSpec(
        name=f"suite_{suite.name}",
        asset=suite.asset,
        description=f"What analysts may rely on in {suite.what}, judged by Great Expectations on a sample.\n\n{rules}",
    )


@dg.multi_asset_check(specs=[_spec(suite) for suite in SUITES], name="suites")
def suites(platform: Platform) -> Iterator[dg.AssetCheckResult]:
    """Each suite on its sample; one that has nothing to look at yet passes and says so."""
    from quality.runner import judge  # noqa: PLC0415

    for suite in SUITES:
        rows = suite.sample(platform)
        metadata = {"rows looked at": 0, "rules": len(suite.expectations), "rules broken": 0}
        if rows is None:
            yield _result(suite, metadata, ())
            continue
        verdict = judge(suite, rows)
        metadata |= {"rows looked at": verdict.rows, "rules broken": len(verdict.failed)}
        yield _result(suite, metadata, verdict.failed)


def _result(suite: Suite, metadata: dict[str, int], failed: tuple[str, ...]) -> dg.AssetCheckResult:
    return dg.AssetCheckResult(
        check_name=f"suite_{suite.name}",
        asset_key=suite.asset,
        passed=not failed,
        severity=dg.AssetCheckSeverity.WARN,
        description="\n".join(failed) or None,
        metadata=metadata,
    )
