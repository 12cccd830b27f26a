"""Replay a range: usage made anew beside what is in use, with a report of what would change; promoted by hand."""

import dagster as dg

from assets.resources import Platform


class ReplayConfig(dg.Config):
    """What is read again. Nothing counts until `promote` names a generation whose report was looked at."""

    first_slice: int = 1
    last_slice: int = 0
    """0 for all from the first on."""
    price_revision: int = 0
    """Charges of the report are by the book up to this revision; 0 for the newest."""
    promote: int = 0
    """A generation that was built before: it counts from now on. 0 builds a new one instead, the dry run."""


@dg.op(
    description="Dry run (the default): builds a new generation of the usage tables from their own rows and reports which "
    "events, cells and charges would differ. With `promote`, lets a built generation count. Issued invoices stay.",
    pool="lake_rewrite",
)
def replay(context: dg.OpExecutionContext, config: ReplayConfig, platform: Platform) -> None:
    from assets.usage.promotion import begin, build, promote  # noqa: PLC0415
    from quality.gates import problems  # noqa: PLC0415

    by = f"dagster:{context.run_id}"
    if config.promote:
        last = promote(platform.objects, platform.database, platform.state, config.promote, problems, by=by)
        context.add_output_metadata({"generation": config.promote, "slice": last, "promoted": True})
        return
    generation = begin(
        platform.database, first=config.first_slice, last=config.last_slice or None,
        price_revision=config.price_revision or None, by=by,
    )  # fmt: skip
    found = build(platform.objects, platform.database, platform.state, generation)
    context.add_output_metadata(
        {
            "generation": generation,
            "promoted": False,
            "events that differ": int(found.events["records"].sum()),
            "cells that differ": len(found.cells),
            "charges that differ": len(found.charges),
            "report": dg.MetadataValue.json(found.report()),
        }
    )


@dg.job(
    tags={"headrace/job": "replay_range"},
    description="Replays a range of slices: dry run first, then with `promote` set to the generation it reported.",
)
def replay_range() -> None:
    replay()
