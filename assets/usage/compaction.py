"""Compaction of `usage_events`, which must not make a damaged object look whole.

After a purge the lake holds the only copy, and what a compaction writes is recorded as true. So only what is as it was
recorded is put together; what is lost or changed stays, for a backup or the senders to mend.
"""

from contextlib import suppress

import psycopg2

from assets.usage import schema
from assets.usage.objects import ObjectProblemError, known, record
from assets.usage.scrub import look
from core.database.urls import libpq_dsn
from core.lake import Lake
from core.lake.maintenance import Compacted, compact
from core.settings import DatabaseSettings


def compact_events(lake: Lake, database: DatabaseSettings) -> Compacted:
    """Put small objects together, none but those that are as they were recorded.

    What is lost or changed stays as it is, beside its neighbours, and is noted as the scrub notes it.
    """
    # Gone before it was recorded: the scrub names it, the others are recorded.
    with suppress(ObjectProblemError):
        record(lake, database)
    before = {each.path: each for each in known(lake, database)}
    hashes = {path: each.sha256 for path, each in before.items()}
    done = compact(lake, schema.EVENTS, order=schema.ORDERS[schema.EVENTS], hashes=hashes)
    with suppress(ObjectProblemError):
        record(lake, database)
    if done.broken:
        connection = psycopg2.connect(libpq_dsn(database, "system"))
        try:
            with connection, connection.cursor() as cursor:
                for path in done.broken:
                    look(cursor, lake, before[path])
        finally:
            connection.close()
    return done
