"""`headrace incident`: a log that is not where landing left it, and what a person decides about it."""

import argparse
from contextlib import suppress
from typing import TYPE_CHECKING, Any

from deploy.cli.frame import CommandError, Subparsers, command, command_group, installation_of, print_json

if TYPE_CHECKING:
    from assets.slices.landing import Target
    from assets.slices.progress import Incident

NOTHING = "every topic is where landing left it"
WHAT_TO_DO = {
    "gap": "find out who deleted them; their senders can send the events again (the same ids count once). Then accept it",
    "recreated": "find out who made it anew; senders can send again what the old topic still held. Then accept it",
    "behind": "stop the producers, delete the topic and start `headrace up`, which makes it anew; then accept that",
}


def register(subparsers: Subparsers) -> None:
    group = command_group(
        subparsers,
        "incident",
        "Records that were gone before they landed, or a topic made anew: look, and let landing go on",
        examples=(
            "headrace incident list",
            'headrace incident accept gap:usage.records:0190…:2:100-149 --reason "retention was set to an hour"',
        ),
    )
    command(
        group, "list", "What stops landing now, and what was accepted before", run_list,
        examples=("headrace incident list", "headrace incident list --json"),
    )  # fmt: skip
    accept = command(
        group, "accept", "Book what is gone as lost and let landing go on behind it; recorded and audited", run_accept,
        examples=('headrace incident accept recreated:usage.records:0190… --reason "moved to a new cluster"',),
    )  # fmt: skip
    accept.add_argument("name", help="of the incident, exactly as `headrace incident list` shows it")
    accept.add_argument("--reason", required=True, help="kept with what is booked")


def targets() -> "dict[str, Target]":
    """Topics that land in the lake."""
    from assets.audit.landing import AUDIT
    from assets.audit.schema import TOPIC as AUDIT_TOPIC
    from assets.usage.landing import USAGE
    from assets.usage.schema import TOPIC as USAGE_TOPIC

    return {USAGE_TOPIC: USAGE, AUDIT_TOPIC: AUDIT}


def run_list(arguments: argparse.Namespace) -> int:
    from assets.slices.progress import incidents

    lake, eventlog, database = _seams(arguments)
    found: list[Incident] = []
    for topic, target in targets().items():
        found += incidents(lake, eventlog, database, topic, target.table)
    accepted = _accepted(database)
    if arguments.json:
        now = [{"name": each.name, "what": str(each), "do": WHAT_TO_DO[each.kind]} for each in found]
        print_json({"incidents": now, "accepted": accepted})
        return 0
    for each in found:
        print(f"{each.name}\n  {each}\n  {WHAT_TO_DO[each.kind]}")
    if not found:
        print(NOTHING)
    for row in accepted:
        last = "an unknown end" if row["end_offset"] is None else str(row["end_offset"] - 1)
        print(
            f"accepted {row['accepted_at']}: {row['topic']} (id {row['topic_id']}), partition {row['partition']}, offsets "
            f"{row['first_offset']} to {last}: {row['reason']}"
        )
    return 0


def run_accept(arguments: argparse.Namespace) -> int:
    from assets.slices.incidents import NotAcceptableError, accept
    from assets.usage.publish import NotRolledUpError, publish
    from assets.usage.schema import TOPIC
    from core.lake.commit import StaleError

    lake, eventlog, database = _seams(arguments)
    topic = arguments.name.split(":")[1] if ":" in arguments.name else ""
    if topic not in targets():
        raise CommandError(f"{arguments.name!r} names no incident; see `headrace incident list`")
    try:
        done = accept(
            lake, eventlog, database, topic, targets()[topic], arguments.name,
            by=_owner(database), reason=arguments.reason,
        )  # fmt: skip
    except (NotAcceptableError, StaleError) as error:
        raise CommandError(str(error)) from error
    if topic == TOPIC:
        with suppress(NotRolledUpError):  # a run rolls up right now, and publishes
            publish(lake, database)  # live quota goes on behind it at once
    if arguments.json:
        print_json({"accepted": done.name})
    else:
        print(f"booked as lost: {done}\nlanding goes on by itself within seconds")
    return 0


def _seams(arguments: argparse.Namespace) -> tuple[Any, Any, Any]:
    from assets.usage.generation import usage_lake
    from core.settings import DatabaseSettings, EventLogSettings, ObjectSettings
    from deploy.session import settings_of

    installation = installation_of(arguments)
    database = settings_of(installation, DatabaseSettings)
    lake = usage_lake(settings_of(installation, ObjectSettings), database)
    return lake, settings_of(installation, EventLogSettings), database


def _owner(database: Any) -> str:
    from deploy.session import owner_id

    found = owner_id(database)
    if found is None:
        raise CommandError(
            "there is no account of the platform's owner yet; start it once with `headrace up`"
        )
    return found


def _accepted(database: Any) -> list[dict[str, Any]]:
    from core.clock import rfc3339

    rows = _query(
        database,
        "select topic, topic_id, partition, first_offset, end_offset, kind, reason, accepted_by, accepted_at "
        "from landing_loss order by accepted_at, partition",
    )
    return [{**row, "accepted_at": rfc3339(row["accepted_at"])} for row in rows]


def _query(database: Any, statement: str) -> list[dict[str, Any]]:
    import psycopg2
    from psycopg2.extras import RealDictCursor

    from core.database.urls import libpq_dsn

    connection = psycopg2.connect(libpq_dsn(database, "system"), cursor_factory=RealDictCursor)
    try:
        with connection, connection.cursor() as cursor:
            cursor.execute(statement)
            return [dict(row) for row in cursor.fetchall()]
    finally:
        connection.close()
