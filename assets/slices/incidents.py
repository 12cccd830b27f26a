"""A person has looked at an incident and says how landing goes on: recorded, audited, and in the lake itself."""

import asyncio
from typing import Any

import polars as pl
from sqlalchemy import text

from assets.slices.landing import Target
from assets.slices.losses import Loss, book, promised, rows_before
from assets.slices.progress import Incident, incidents, landed_offsets, made_from
from core import audit
from core.database import Database
from core.ids import new_id
from core.lake import Lake
from core.lake.commit import commit, create
from core.settings import DatabaseSettings, EventLogSettings
from core.topology import TOPICS


class NotAcceptableError(Exception):
    """There is no such incident now, or it is none that accepting would mend."""


def accept(
    lake: Lake,
    eventlog: EventLogSettings,
    database: DatabaseSettings,
    topic: str,
    target: Target,
    name: str,
    *,
    by: str,
    reason: str,
) -> Incident:
    """Let landing go on behind an incident. What was lost is booked first, then the lake moves; safe to repeat.

    A gap is booked as lost offsets, and the partition goes on behind them. A topic made anew is landed from
    its beginning under its own id; what the old one still held beyond what had landed is booked as lost,
    with an end that nobody knows.

    Args:
        name: of the incident, as `Incident.name` says it; another one than was looked at is not accepted.
        by: id of the person.

    Raises:
        NotAcceptableError: with what there is instead.
        StaleError: landing has moved meanwhile.
    """
    found = incidents(lake, eventlog, database, topic, target.table)
    chosen = next((each for each in found if each.name == name), None)
    if chosen is None:
        now = ", ".join(each.name for each in found) or "none"
        raise NotAcceptableError(f"there is no incident {name!r} of {topic} now; there is: {now}")
    if chosen.kind == "behind":
        raise NotAcceptableError(
            f"{chosen}: new records would take offsets that have landed, so nothing can tell them apart. Stop the "
            "producers, delete the topic and let it be made anew, then accept that"
        )
    asyncio.run(_record(database, chosen, _lost(lake, target, chosen), by, reason))
    if chosen.kind == "gap":
        loss = Loss(chosen.topic_id, chosen.partition, chosen.first, chosen.end)
        empty = pl.DataFrame(schema=dict(target.schema))
        create(lake, target.table, empty, target.statistics, description=made_from(chosen.topic_id))
        book(lake, target.table, empty, loss)
    else:
        _go_on_with(lake, target, chosen)
    return chosen


def _go_on_with(lake: Lake, target: Target, incident: Incident) -> None:
    """The table lands the new topic from now on; how many rows it has of others is committed before."""
    handle = lake.open(target.table)
    if handle is None:
        return
    rows = promised(handle, incident.was, TOPICS[incident.topic].partitions)
    name = rows_before(incident.topic_id)
    if handle.transaction_version(name) is None:
        empty = pl.DataFrame(schema=dict(target.schema))
        commit(lake, target.table, empty, {name: rows}, {name: None}, handle=handle)
    handle.alter.set_table_description(made_from(incident.topic_id))
    lake.forget(target.table)


def _lost(lake: Lake, target: Target, incident: Incident) -> list[dict[str, Any]]:
    """Rows of `landing_loss`: an end of None is not known."""
    if incident.kind == "gap":
        return [
            {"topic_id": incident.topic_id, "partition": incident.partition, "first": incident.first, "end": incident.end}
        ]  # fmt: skip
    handle = lake.open(target.table)
    return [
        {
            "topic_id": incident.was,
            "partition": partition,
            "first": offset,
            "end": None,
        }
        for partition, offset in landed_offsets(
            handle, incident.was, TOPICS[incident.topic].partitions
        ).items()
    ]


async def _record(
    database: DatabaseSettings, incident: Incident, lost: list[dict[str, Any]], by: str, reason: str
) -> None:
    system = Database(database, role="system")
    try:
        async with system.writer() as connection:
            for row in lost:
                made = await connection.execute(
                    text(
                        "insert into landing_loss (id, topic, topic_id, partition, first_offset, end_offset, kind, reason, "
                        "accepted_by) values (:id, :topic, :topic_id, :partition, :first, :end, :kind, :reason, :by) "
                        "on conflict (topic_id, partition, first_offset) do nothing"
                    ),
                    {**row, "id": new_id("loss"), "topic": incident.topic, "kind": incident.kind, "reason": reason, "by": by},
                )  # fmt: skip
                if made.rowcount:
                    await audit.record(
                        connection, action="landing.loss_accept", actor=by, tenant_id=audit.NO_TENANT,
                        target=f"{incident.topic}:{row['topic_id']}:{row['partition']}", outcome="success",
                        detail={
                            "first": str(row["first"]),
                            "end": "unknown" if row["end"] is None else str(row["end"]),
                        },
                    )  # fmt: skip
    finally:
        await system.close()
