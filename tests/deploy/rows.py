"""Rows for every table of a database as it stands, made from its catalogue alone.

All columns of one `World` of a type have the same value, so that whatever refers to something finds it.
"""

import hashlib
import re
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Any, Final

import psycopg2
from psycopg2 import sql
from psycopg2.extensions import connection as Connection  # noqa: N812
from psycopg2.extensions import cursor as Cursor  # noqa: N812
from psycopg2.extras import Json

Table = tuple[str, str]
"""Schema and name."""
_OF_ALEMBIC: Final = {("public", "alembic_version")}
_NONE_COUNTED: Final = dict.fromkeys(("landed", "counted", "duplicates", "quarantined", "rejected"), 0)
_ASKED: Final[Mapping[str, Mapping[str, Any]]] = {
    "idempotency_key": {"status": 200},
    "document": {"kind": "memory", "user_id": "usr_1"},
    "usage_conservation": _NONE_COUNTED,
    "usage_purge": {"low_before": 0},
    "usage_generation": {"made_from": 1},
    "landing_loss": {"kind": "recreated"},
    "price": {"currency": "USD"},
    "invoice": {"currency": "USD"},
    "usage_replacement": {"by_source": "successor"},
}
"""What the checks of a table ask for and cannot be read from their text."""


@dataclass(frozen=True, slots=True)
class Column:
    name: str
    type: str
    required: bool
    choices: tuple[str, ...]
    """The values that a check names, none where it names none."""


@dataclass(frozen=True, slots=True)
class World:
    """The rows of one organisation."""

    number: int
    """From 2 to 255."""

    @property
    def tenant(self) -> str:
        return f"world-{self.number}"

    def value(self, table: str, column: Column) -> Any:
        if column.name in (asked := _ASKED.get(table, {})):
            return asked[column.name]
        if column.choices:
            return column.choices[0]
        if column.type.startswith("timestamp"):
            later = column.name.endswith(("_end", "_to"))
            return datetime(2026, 1, 1, tzinfo=UTC) + timedelta(days=self.number, hours=later)
        if column.type == "text":
            return hashlib.sha256(self._bytes).hexdigest() if column.name == "sha256" else self.tenant
        return {
            "text[]": [self.tenant], "bigint[]": [self.number], "bytea": self._bytes, "jsonb": Json([self.tenant]),
            "boolean": True, "interval": timedelta(hours=self.number), "uuid": f"{self.number:032x}",
        }.get(column.type, self.number)  # fmt: skip

    @property
    def _bytes(self) -> bytes:
        return bytes([self.number]) * 32


def tables(connection: Connection) -> Mapping[Table, list[Column]]:
    """Every table with its columns, but those that only migrations fill."""
    found: dict[Table, list[Column]] = {}
    with connection.cursor() as cursor:
        cursor.execute(
            """
            select n.nspname, c.relname, a.attname, format_type(a.atttypid, null), a.attnotnull and not a.atthasdef,
                   (select string_agg(pg_get_constraintdef(k.oid), ' ') from pg_constraint k
                    where k.conrelid = c.oid and k.contype = 'c' and k.conkey = array[a.attnum])
            from pg_class c join pg_namespace n on n.oid = c.relnamespace
            join pg_attribute a on a.attrelid = c.oid and a.attnum > 0 and not a.attisdropped
            where c.relkind in ('r', 'p') and n.nspname !~ '^(pg_|information_schema)' order by 1, 2, a.attnum
            """
        )
        for schema, table, name, kind, required, checks in cursor:
            choices = re.findall(r"'(\w+)'::text", checks or "") if "ARRAY" in (checks or "") else []
            column = Column(name, kind, required, tuple(choices))
            found.setdefault((schema, table), []).append(column)
    return {table: columns for table, columns in found.items() if table not in _OF_ALEMBIC}


def fill(connection: Connection, world: World) -> None:
    """One row in each table, with a value in each column whose checks allow one. For a superuser."""
    with connection, connection.cursor() as cursor:
        # Tables are filled in no order; nothing dangles once all are.
        cursor.execute("set session_replication_role = replica")
        for (schema, table), columns in tables(connection).items():
            target = sql.Identifier(schema, table)
            values = {each.name: world.value(table, each) for each in columns}
            needed = [each.name for each in columns if each.required or each.name in _ASKED.get(table, ())]
            insert = sql.SQL("insert into {} ({}) overriding system value values ({}) returning ctid").format(
                target, sql.SQL(", ").join(map(sql.Identifier, needed)), sql.SQL(", ").join(sql.Placeholder() * len(needed)),
            )  # fmt: skip
            cursor.execute(insert, [values[name] for name in needed])
            row = _one(cursor)
            for name, value in values.items():
                if name not in needed:
                    row = _set(cursor, target, row, name, value)


def _set(cursor: Cursor, target: sql.Identifier, row: str, name: str, value: Any) -> str:
    """Where the row is now: where it was, if a check refuses the value."""
    update = sql.SQL("update {} set {} = %s where ctid = %s returning ctid").format(
        target, sql.Identifier(name)
    )
    cursor.execute("savepoint optional")
    try:
        cursor.execute(update, (value, row))
    except psycopg2.errors.CheckViolation:
        cursor.execute("rollback to savepoint optional")
        return row
    return _one(cursor)


def _one(cursor: Cursor) -> str:
    found = cursor.fetchone()
    assert found is not None
    return str(found[0])
