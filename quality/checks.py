"""Asset checks: thin, like the assets they guard. The rules are in `quality.gates`."""

import dagster as dg

from assets.resources import Platform


@dg.asset_check(asset="usage_hourly", blocking=True)
def conservation(platform: Platform) -> dg.AssetCheckResult:
    """landed = counted + duplicates + quarantined + rejected, per partition and tenant; offsets are dense and
    go on where the published end; the cells hold exactly the events and quantities that were counted, less
    those that were voided, and each void takes out what one counted event put in.

    Looks at every slice that is not published yet. Red stops publication, and no invoice is issued until it is green.
    """
    from assets.usage import gate  # noqa: PLC0415
    from assets.usage.evidence import evidence  # noqa: PLC0415
    from assets.usage.progress import published_offsets, published_slice  # noqa: PLC0415
    from assets.usage.rollup import rolled_slice  # noqa: PLC0415
    from quality import gates  # noqa: PLC0415

    lake = platform.lake()
    first, last = published_slice(platform.database) + 1, rolled_slice(lake)
    if last < first:
        gate.say(platform.database, lake.generation, first, last, 0)
        return dg.AssetCheckResult(passed=True, metadata={"landed": 0})
    found = evidence(lake, first, last)
    frame = found.conservation
    offsets = published_offsets(platform.database, lake)
    problems = gates.problems(found) + gates.contiguous(frame, offsets)
    gate.say(platform.database, lake.generation, first, last, len(problems))
    names = ("landed", "counted", "duplicates", "quarantined", "rejected")
    return dg.AssetCheckResult(
        passed=not problems,
        severity=dg.AssetCheckSeverity.ERROR,
        description="; ".join(problems[:5]) or None,
        metadata={
            **{name: int(frame[name].sum()) for name in names},
            "problems": dg.MetadataValue.json(problems[:100]),
        },
    )


@dg.asset_check(asset="usage_producers")
def senders_are_complete(platform: Platform) -> dg.AssetCheckResult:
    """Everything that producers said they had sent has landed, once.

    Red: events of the named producers are missing, or two of them stand under one number. Who sends them can
    send the missing ones again under their ids and numbers at any time; doubled ones are mended by a void.
    """
    from assets.usage.progress import open_checkpoints  # noqa: PLC0415

    wanting = open_checkpoints(platform.database)
    problems = [
        f"{tenant}, producer {producer} {incarnation}: {state}, {missing} missing of {first} to {last}"
        for tenant, producer, incarnation, first, last, state, missing in wanting
    ]
    return dg.AssetCheckResult(
        passed=not problems,
        severity=dg.AssetCheckSeverity.WARN,
        description="; ".join(problems[:5]) or None,
        metadata={"open": len(problems), "problems": dg.MetadataValue.json(problems[:100])},
    )


@dg.asset_check(asset="audit_events", blocking=True)
def complete(platform: Platform) -> dg.AssetCheckResult:
    """Rows = dense offsets: the whole table by its log, the newest slices by their rows.

    Red: rows are missing or doubled. Compare with the topic `audit.logs` (kept 90 days) before anything else.
    """
    from assets.audit.schema import EVENTS, TOPIC  # noqa: PLC0415
    from assets.slices.progress import landed_ranges  # noqa: PLC0415
    from quality.gates import complete as gate  # noqa: PLC0415

    landed = landed_ranges(platform.lake(), EVENTS, TOPIC)
    if landed is None:
        return dg.AssetCheckResult(passed=True, metadata={"rows": 0})
    verdict = gate(*landed)
    return dg.AssetCheckResult(
        passed=verdict.holds,
        severity=dg.AssetCheckSeverity.ERROR,
        description="; ".join(verdict.problems[:5]) or None,
        metadata={"rows": verdict.landed, "problems": dg.MetadataValue.json(verdict.problems[:100])},
    )


@dg.asset_check(asset="usage_events")
def objects_intact(platform: Platform) -> dg.AssetCheckResult:
    """Objects of `usage_events` are read again and have the SHA-256 that was recorded when they were written.

    Each hour the part that was read longest ago; a red object is read again each time. Red names every
    object that is lost or changed, with its offsets and tenants: restore it from a backup under the same
    name. What the topic still holds of it can be told apart by the offsets (`headrace purge hold` keeps it).
    """
    from assets.usage.scrub import scrub  # noqa: PLC0415

    done = scrub(platform.objects, platform.database, most_bytes=platform.usage.usage_scrub_mb << 20)
    return dg.AssetCheckResult(
        passed=not done.problems,
        severity=dg.AssetCheckSeverity.ERROR,
        description="; ".join(done.problems[:5]) or None,
        metadata={
            "objects read": done.objects,
            "bytes read": done.bytes,
            "oldest look": "" if done.oldest is None else done.oldest.isoformat(),
            "problems": dg.MetadataValue.json(done.problems[:100]),
        },
    )
