"""Nothing that holds data is missing from the data map, and nothing in it is made up."""

import ast
import importlib
import pkgutil
import re
from collections import Counter, defaultdict
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import text

import assets
import services
from core import cache, personal_data
from core.contracts.audit import AuditEvent
from core.contracts.usage import Checkpoint, UsageEvent, VoidEvent
from core.database import Database
from core.personal_data import ALL, HOLDINGS, Erasure, Holding, Kind, parts_of, places
from core.settings import ALL as SETTINGS
from core.topology import BUCKETS, QUEUES, TOPICS

CONTRACTS = {"usage_event": (UsageEvent, VoidEvent, Checkpoint), "audit_event": (AuditEvent,)}


async def live_tables(database: Database) -> Mapping[str, set[str]]:
    """Columns of every table of the migrated database, as PostgreSQL itself lists them."""
    async with database.reader() as connection:
        rows = await connection.execute(
            text(
                """
                select n.nspname || '.' || c.relname, a.attname
                from pg_class c join pg_namespace n on n.oid = c.relnamespace
                join pg_attribute a on a.attrelid = c.oid and a.attnum > 0 and not a.attisdropped
                where c.relkind in ('r', 'p', 'm', 'v', 'f') and n.nspname !~ '^(pg_|information_schema)'
                """
            )
        )
        found = defaultdict(set)
        for table, column in rows:
            found[table].add(column)
        return found


def lake_tables() -> Mapping[str, set[str]]:
    """Columns of every Delta table that an `assets.*.schema` module declares (NAME and NAME_SCHEMA)."""
    found: dict[str, set[str]] = {}
    for module in pkgutil.walk_packages(assets.__path__, "assets."):
        if module.name.endswith(".schema"):
            content = vars(importlib.import_module(module.name))
            found |= {
                content[name.removesuffix("_SCHEMA")]: set(columns)
                for name, columns in content.items()
                if name.endswith("_SCHEMA")
            }
    return found


async def test_every_column_of_the_live_database_is_mapped(system_database: Database) -> None:
    live = await live_tables(system_database)
    assert len(live) > 15
    assert {table: parts_of(Kind.TABLE, table) for table in live} == live
    assert places(Kind.TABLE) == live.keys()


def test_every_delta_table_is_mapped() -> None:
    declared = lake_tables()
    assert "usage_events" in declared
    assert {table: parts_of(Kind.DELTA, table) for table in declared} == declared
    assert places(Kind.DELTA) == declared.keys()


def test_every_topic_is_mapped_by_its_contract() -> None:
    assert places(Kind.TOPIC) == TOPICS.keys()
    for topic in TOPICS.values():
        fields = {field for each in CONTRACTS.get(topic.payload, ()) for field in each.__struct_fields__}
        expected = fields or {*ALL}
        assert parts_of(Kind.TOPIC, topic.name) == expected, topic.name


@pytest.mark.parametrize(
    ("kind", "existing"),
    [
        (Kind.QUEUE, QUEUES.keys()),
        (Kind.BUCKET, BUCKETS.keys()),
        (Kind.CACHE, cache.KEYS.keys() | cache.CHANNELS.keys()),
    ],
)
def test_every_queue_bucket_and_key_family_is_mapped(kind: Kind, existing: set[str]) -> None:
    assert places(kind) == existing


def test_every_key_that_the_services_write_is_of_a_known_family() -> None:
    families = [re.sub(r"\\\{\w+\\\}", ".*", re.escape(name)) for name in (*cache.KEYS, *cache.CHANNELS)]
    written = {
        node.value
        for file in Path(services.__path__[0]).rglob("*.py")
        for node in ast.walk(ast.parse(file.read_text()))
        if isinstance(node, ast.Constant)
        and isinstance(node.value, str)
        and node.value.startswith("headrace:")
    }
    assert written
    assert [key for key in written if not re.fullmatch("|".join(families), key)] == []


def test_every_folder_of_the_settings_is_mapped() -> None:
    folders = {
        name
        for settings in SETTINGS
        for name, field in settings.model_fields.items()
        if field.annotation is Path and name.endswith("_dir")
    }
    assert places(Kind.FOLDER) == folders


def test_nothing_is_mapped_twice() -> None:
    counts = Counter((holding.kind, holding.place, part) for holding in HOLDINGS for part in holding.parts)
    assert [key for key, count in counts.items() if count > 1] == []


def test_the_likely_suspects_are_personal() -> None:
    suspects = {
        "email",
        "password_hash",
        "subject",
        "actor",
        "created_by",
        "person_id",
        "raw",
        "sealed",
        "body",
        "value",
    }
    named = {part for holding in HOLDINGS if holding.personal for part in holding.parts}
    assert suspects <= named
    innocent = {part for holding in HOLDINGS if not holding.personal for part in holding.parts}
    assert not suspects & innocent


@pytest.mark.parametrize("missing", ["subject", "export", "retention"])
def test_personal_data_without_an_owner_or_an_end_is_refused(missing: str) -> None:
    complete: dict[str, Any] = {"subject": "id", "export": "rows", "retention": "account"}
    Holding(Kind.TABLE, "t", ("c",), "x", Erasure.DELETE, **complete)
    with pytest.raises(ValueError, match="needs a subject"):
        Holding(Kind.TABLE, "t", ("c",), "x", Erasure.DELETE, **complete | {missing: ""})


def test_an_unmapped_column_would_be_noticed() -> None:
    assert "surprise" not in personal_data.parts_of(Kind.TABLE, "public.person")
