"""`python -m deploy.ensure database|topology`: bring servers to what this version needs. Safe to repeat.

`database` makes roles and databases (where HEADRACE_DATABASE_ADMIN_URL lets it) and runs the
migrations; `topology` makes topics, queues and buckets.
"""

import asyncio
import os
import sys

import psycopg2
from sqlalchemy import make_url

from core.eventlog import open_eventlog
from core.messaging import queue_topology
from core.objects import open_objects
from core.queue import open_queue
from core.settings import DatabaseSettings, EventLogSettings, ObjectSettings, QueueSettings
from core.topology import BUCKETS, TOPICS
from deploy import migrate


def database() -> None:
    """Roles, databases, schema."""
    settings = DatabaseSettings()
    if admin := os.environ.get("HEADRACE_DATABASE_ADMIN_URL"):
        passwords = {
            role: os.environ[f"HEADRACE_DATABASE_{role.removeprefix('hr_').upper()}_PASSWORD"]
            for role in migrate.ROLES
        }
        migrate.ensure_roles(admin, make_url(settings.database_url).database or "headrace", passwords)
    migrate.upgrade(settings)
    if admin:
        checkpoint(admin)


def checkpoint(admin: str) -> None:
    """Put what the migrations made on disk now: a PostgreSQL killed soon after need not redo it."""
    connection = psycopg2.connect(admin)
    connection.autocommit = True
    try:
        with connection.cursor() as cursor:
            cursor.execute("checkpoint")
    finally:
        connection.close()


async def topology() -> None:
    """Every topic, queue and bucket of `core.topology`."""
    async with open_eventlog(EventLogSettings(), DatabaseSettings()) as eventlog:
        await eventlog.ensure_topics(list(TOPICS.values()))
    async with open_queue(QueueSettings(), DatabaseSettings()) as queue:
        await queue_topology.ensure(queue)
    async with open_objects(ObjectSettings(), DatabaseSettings()) as objects:
        for bucket in BUCKETS.values():
            await objects.ensure_bucket(bucket.name, versioned=bucket.versioned)


def main(arguments: list[str]) -> int:
    """Exit status 0 once it is so."""
    match arguments:
        case ["database"]:
            database()
        case ["topology"]:
            asyncio.run(topology())
        case _:
            sys.stderr.write("usage: python -m deploy.ensure database|topology\n")
            return 2
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
