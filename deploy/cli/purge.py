"""`headrace purge`: what leaves the event log, why it may, and what stops it."""

import argparse
from typing import Any

from deploy.cli.frame import (
    CommandError,
    Subparsers,
    command,
    command_group,
    installation_of,
    print_json,
    running_installation,
)


def register(subparsers: Subparsers) -> None:
    group = command_group(
        subparsers,
        "purge",
        "Take records out of usage.records once they are proven to have landed",
        examples=(
            "headrace purge plan",
            "headrace purge log",
            'headrace purge hold dispute-17 --reason "the customer disputes March"',
            "headrace purge lift dispute-17",
        ),
    )
    for name, what, act in (
        ("plan", "Read everything back and say what may go; deletes nothing", run_plan),
        ("now", "The same, and delete what may go; Dagster does it each hour", run_now),
    ):
        parser = command(
            group, name, what, act,
            examples=(f"headrace purge {name}", f"headrace purge {name} --lag-hours 0 --json"),
        )  # fmt: skip
        parser.add_argument(
            "--lag-hours", type=float, metavar="H",
            help="how long something must have been published (default: HEADRACE_USAGE_PURGE_LAG_HOURS)",
        )  # fmt: skip
    log = command(
        group, "log", "Purges with their evidence, newest first", run_log, examples=("headrace purge log",)
    )
    log.add_argument("--limit", type=int, default=20, metavar="N", help="at most N (default 20)")
    command(group, "holds", "Holds, those that stand first", run_holds, examples=("headrace purge holds",))
    hold = command(
        group, "hold", "Keep records in the log until the hold is lifted", run_hold,
        examples=('headrace purge hold dispute-17 --reason "…" --partition 2',),
    )  # fmt: skip
    hold.add_argument("name", help="of your choice: a-z, 0-9 and -")
    hold.add_argument("--reason", required=True)
    hold.add_argument("--partition", type=int, metavar="P", help="only of this partition (default: all)")
    lift = command(group, "lift", "Lift a hold", run_lift, examples=("headrace purge lift dispute-17",))
    lift.add_argument("name")


def run_plan(arguments: argparse.Namespace) -> int:
    return _carry_out(arguments, delete=False)


def run_now(arguments: argparse.Namespace) -> int:
    return _carry_out(arguments, delete=True)


def _carry_out(arguments: argparse.Namespace, *, delete: bool) -> int:
    from datetime import timedelta

    from assets.usage.generation import usage_lake
    from assets.usage.purge import plan, purge
    from core.settings import DatabaseSettings, EventLogSettings, ObjectSettings, UsageSettings
    from deploy.session import settings_of

    installation = installation_of(arguments)
    usage = settings_of(installation, UsageSettings)
    hours = usage.usage_purge_lag_hours if arguments.lag_hours is None else arguments.lag_hours
    database = settings_of(installation, DatabaseSettings)
    where = (
        usage_lake(settings_of(installation, ObjectSettings), database),
        settings_of(installation, EventLogSettings),
        database,
    )
    lows: dict[int, int] = {}
    if delete:
        done = purge(*where, lag=timedelta(hours=hours), most=usage.usage_purge_records)
        decided, lows = done.plan, dict(done.lows)
    else:
        decided = plan(*where, lag=timedelta(hours=hours), most=usage.usage_purge_records)
    if arguments.json:
        print_json(
            {
                "may_go": [
                    {"partition": p.partition, "topic_id": p.topic_id, "low": p.low, "before": p.before, "proven": p.proven}
                    for p in decided.permits
                ],
                "low_watermarks": {str(p): low for p, low in lows.items()},
                "held": {str(p): names for p, names in decided.held.items()},
                "refused": {str(p): texts for p, texts in decided.refused.items()},
                "rollup_sha256": decided.proof.rollup if decided.proof else None,
                "objects": [each.path for each in decided.proof.objects] if decided.proof else [],
            }
        )  # fmt: skip
    else:
        for permit in decided.permits:
            verb = "purged" if permit.partition in lows else "may go"
            print(f"partition {permit.partition}: offsets {permit.low} to {permit.before - 1} {verb}")
        for partition, names in sorted(decided.held.items()):
            print(f"partition {partition}: held by {', '.join(names)}")
        if not (decided.permits or decided.held or decided.refused):
            print(f"nothing has been published for {hours:g} hours and is still in the log")
    if decided.refused:
        raise CommandError(
            f"{decided.why()}\nIts records are in the topic for 30 days: place a hold (`headrace purge hold`), "
            "restore the object from a backup, and try again"
        )
    return 0


def run_log(arguments: argparse.Namespace) -> int:
    import psycopg2
    from psycopg2.extras import RealDictCursor

    from core.clock import rfc3339
    from core.database.urls import libpq_dsn
    from core.settings import DatabaseSettings
    from deploy.session import settings_of

    settings = settings_of(installation_of(arguments), DatabaseSettings)
    connection = psycopg2.connect(libpq_dsn(settings, "system"), cursor_factory=RealDictCursor)
    try:
        with connection, connection.cursor() as cursor:
            cursor.execute("select * from usage_purge order by id desc limit %s", (arguments.limit,))
            found = [dict(row) for row in cursor.fetchall()]
    finally:
        connection.close()
    for row in found:
        row["intended_at"] = rfc3339(row["intended_at"])
        row["done_at"] = rfc3339(row["done_at"]) if row["done_at"] else None
    if arguments.json:
        print_json(found)
        return 0
    for row in found:
        answer = f"low watermark {row['low_after']} at {row['done_at']}" if row["done_at"] else "NOT EXECUTED"
        print(
            f"{row['id']:>5}  {row['intended_at']}  partition {row['partition']}: {row['low_before']} to "
            f"{row['before_offset'] - 1} by {len(row['evidence']['objects'])} objects, roll-up "
            f"{row['evidence']['rollup_sha256'][:12]}; {answer}"
        )
    if not found:
        print("nothing was purged yet")
    return 0


def run_holds(arguments: argparse.Namespace) -> int:
    found = _call(arguments, "GET", "/api/v1/usage/holds")["data"]
    if arguments.json:
        print_json(found)
        return 0
    for hold in found:
        where = "all partitions" if hold["partition"] is None else f"partition {hold['partition']}"
        until = f"lifted {hold['lifted_at']}" if hold["lifted_at"] else "stands"
        print(f"{hold['name']:24} {where:16} since {hold['placed_at']}  {until}  {hold['reason']}")
    if not found:
        print("no holds")
    return 0


def run_hold(arguments: argparse.Namespace) -> int:
    body = {"reason": arguments.reason}
    if arguments.partition is not None:
        body["partition"] = arguments.partition
    return _show(arguments, _call(arguments, "PUT", f"/api/v1/usage/holds/{arguments.name}", body))


def run_lift(arguments: argparse.Namespace) -> int:
    return _show(arguments, _call(arguments, "DELETE", f"/api/v1/usage/holds/{arguments.name}"))


def _show(arguments: argparse.Namespace, hold: dict[str, Any]) -> int:
    if arguments.json:
        print_json(hold)
    else:
        print(f"hold {hold['name']} {'was lifted' if hold['lifted_at'] else 'stands'}")
    return 0


def _call(arguments: argparse.Namespace, method: str, path: str, body: object = None) -> Any:
    import json

    from deploy.client import ApiError, PlatformUnreachableError
    from deploy.session import operator

    owner = operator(running_installation(arguments))
    try:
        content = None if body is None else json.dumps(body).encode()
        return owner.client().call(method, path, content=content)
    except (ApiError, PlatformUnreachableError) as error:
        raise CommandError(str(error)) from error
