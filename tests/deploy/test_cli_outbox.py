"""`headrace outbox`: what was refused is shown with its reason, goes back as it was, or goes for good."""

import json
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

import psycopg2
import pytest

from core.database import dsn
from core.settings import DatabaseSettings
from deploy.cli.main import main
from deploy.installation import prepare, write_env
from tests.conformance.queue.support import environment

TENANT = "org_01a22ee1-856a-7062-a4cc-307aad5b6cf1"
RECORDS = f"""
insert into outbox_dead (id, tenant_id, topic, key, value, headers, enqueued_at, code, reason)
select n, '{TENANT}', 'usage.records', 'key', 'value', 'headers', '2026-02-18T12:00:00Z', 'too_large', 'the broker takes less [/x]'
from generate_series(1, 3) n
"""
MESSAGE = f"""
insert into queue_outbox_dead (id, tenant_id, family, routing_key, message_id, body, enqueued_at, code, reason)
values (7, '{TENANT}', 'document.index', 'document.index', 'mq_1', 'body', '2026-02-18T12:00:00Z', 'unroutable', 'no queue')
"""


class Tables:
    """The outboxes of the database, and what they hold for this module's organisation."""

    def __init__(self, connection: Any) -> None:
        self._connection = connection

    def execute(self, statement: str) -> list[tuple[Any, ...]]:
        with self._connection, self._connection.cursor() as cursor:
            cursor.execute(statement)
            return list(cursor) if cursor.description else []

    def clear(self) -> None:
        for table in ("outbox", "outbox_dead", "queue_outbox", "queue_outbox_dead"):
            self.execute(f"delete from {table}")

    def waiting(self, columns: str) -> list[tuple[Any, ...]]:
        """In the outbox of records, but what the audit put there."""
        return self.execute(f"select {columns} from outbox where topic <> 'audit.logs' order by id")

    def audited(self) -> list[dict[str, Any]]:
        found = self.execute(
            "select convert_from(value, 'UTF8') from outbox where topic = 'audit.logs' order by id"
        )
        return [json.loads(value) for (value,) in found]

    def rows(self, table: str, columns: str) -> list[tuple[Any, ...]]:
        return self.execute(f"select {columns} from {table} order by id")


@pytest.fixture
def tables(postgres: DatabaseSettings) -> Iterator[Tables]:
    with closing(psycopg2.connect(dsn(postgres, "system"))) as connection:
        found = Tables(connection)
        found.clear()
        found.execute(RECORDS)
        found.execute(MESSAGE)
        yield found
        found.clear()


@pytest.fixture
def data(tmp_path: Path, postgres: DatabaseSettings) -> list[str]:
    """Words that name an installation on the database of the tests."""
    installation = prepare(tmp_path, None, 0, {})
    write_env(installation.env_file, {**installation.environment, **environment(postgres)})
    return ["--data", str(tmp_path)]


def test_what_was_refused_is_listed_with_its_reason(
    tables: Tables, data: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["outbox", "list", "--json", *data]) == 0
    listed = json.loads(capsys.readouterr().out)
    assert [(row["kind"], row["id"]) for row in listed] == [
        ("records", 1), ("records", 2), ("records", 3), ("messages", 7)
    ]  # fmt: skip
    assert listed[0] | {"died_at": ""} == {
        "kind": "records", "id": 1, "tenant": TENANT, "to": "usage.records", "died_at": "",
        "enqueued_at": "2026-02-18T12:00:00.000Z", "code": "too_large", "reason": "the broker takes less [/x]",
    }  # fmt: skip
    assert listed[3]["to"] == "document.index document.index"
    assert main(["outbox", "list", *data]) == 0
    assert "[/x]" in capsys.readouterr().out
    tables.clear()
    assert main(["outbox", "list", *data]) == 0
    assert capsys.readouterr().out == "nothing was refused\n"


def test_what_is_redriven_waits_again_as_it_was(
    tables: Tables, data: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    what = "tenant_id, topic, convert_from(key || value || headers, 'UTF8'), enqueued_at"
    refused = tables.rows("outbox_dead", what)
    assert main(["outbox", "redrive", "records", "2", *data]) == 0
    assert capsys.readouterr().out == f"1 redriven\n  1 of {TENANT} to usage.records\n"
    assert tables.waiting(what) == refused[:1]
    assert tables.rows("outbox_dead", "id") == [(1,), (3,)]
    assert main(["outbox", "redrive", "records", "2", *data]) == 1
    assert "1 of the ids are none of the oldest 10,000 records that were refused" in capsys.readouterr().err
    assert main(["outbox", "redrive", "records", "--all", "--json", *data]) == 0
    assert json.loads(capsys.readouterr().out) == {"redriven": 2}
    assert tables.waiting(what) == refused
    assert main(["outbox", "redrive", "messages", "--all", *data]) == 0
    assert tables.rows("queue_outbox", "family, message_id, convert_from(body, 'UTF8')") == [
        ("document.index", "mq_1", "body")
    ]
    assert tables.rows("queue_outbox_dead", "id") == []


def test_what_is_dropped_is_gone(tables: Tables, data: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["outbox", "drop", "records", *data]) == 1
    assert "or say --all" in capsys.readouterr().err
    assert main(["outbox", "drop", "records", "1", "3", *data]) == 0
    assert tables.rows("outbox_dead", "id") == [(2,)]
    assert main(["outbox", "drop", "messages", "--all", *data]) == 0
    assert tables.rows("queue_outbox_dead", "id") == []
    assert tables.waiting("id") == tables.rows("queue_outbox", "id") == []
    assert [(event["action"], event["tenant"], event["detail"]) for event in tables.audited()] == [
        ("outbox.drop", TENANT, {"to": "usage.records", "count": "2"}),
        ("outbox.drop", TENANT, {"to": "document.index", "count": "1"}),
    ]


def test_a_limit_below_one_is_refused(data: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["outbox", "list", "--limit", "-1", *data]) == 1
    assert "--limit must be at least 1" in capsys.readouterr().err
