"""Only what an import declared is counted under its name, whoever wrote it to the topic."""

from collections.abc import Sequence
from datetime import timedelta
from pathlib import Path
from typing import Any

import psycopg2

from assets.usage.imports import Import, declared_in
from assets.usage.landing import land
from core.contracts.usage import Reference, UsageData, UsageEvent, VoidEvent
from core.database import dsn
from core.ids import new_id
from core.settings import DatabaseSettings
from tests.assets.usage.lake import NOW, local_lake, records, slice_of
from tests.assets.usage.test_landing import rows

FIRST, LAST = NOW - timedelta(days=900), NOW - timedelta(days=800)
TICK = timedelta(microseconds=1)
HISTORY: Import = ("org_a", "imp_1", "history", FIRST, LAST)
UNKNOWN, MISMATCH = ("quarantined", "unknown_import"), ("quarantined", "import_mismatch")
COUNTED = ("counted", None)


def usage(name: str, **more: Any) -> bytes:
    said = {"source": "history", "time": FIRST, "tenant": "org_a", "importid": "imp_1", **more}
    return UsageEvent(
        id=name, type="headrace.usage.v1", specversion="1.0", data=UsageData("llm.tokens.input", "5"), **said
    ).encode()


def void(name: str, of: str, **more: Any) -> bytes:
    said = {"source": "history", "time": FIRST, "tenant": "org_a", "importid": "imp_1", **more}
    return VoidEvent(
        id=name, type="headrace.usage.void.v1", specversion="1.0", data=Reference("history", of), **said
    ).encode()


class Asked:
    """Declared imports, and what was asked for."""

    def __init__(self, *declared: Import) -> None:
        self._declared, self.questions = declared, list[list[tuple[str, str]]]()

    def __call__(self, wanted: Sequence[tuple[str, str]]) -> list[Import]:
        self.questions.append(sorted(wanted))
        return [one for one in self._declared if one[:2] in wanted]


def test_landing_holds_each_event_against_what_its_import_declared(tmp_path: Path) -> None:
    sent = [
        (usage("first", time=FIRST), COUNTED),
        (usage("last", time=LAST), COUNTED),
        (usage("too early", time=FIRST - TICK), MISMATCH),
        (usage("too late", time=LAST + TICK), MISMATCH),
        (usage("now", time=NOW), MISMATCH),
        (usage("another source", source="crm"), MISMATCH),
        (usage("never declared", importid="imp_2"), UNKNOWN),
        (usage("never declared, and of now", importid="imp_2", time=NOW), UNKNOWN),
        (usage("somebody else's", tenant="org_b"), UNKNOWN),
        (usage("live", importid="", time=NOW), COUNTED),
        (usage("live and old", importid=""), ("quarantined", "out_of_limits")),
        (usage("first", time=FIRST + TICK), ("quarantined", "conflict")),
        (usage("first", time=FIRST), ("duplicate", None)),
        (b'{"importid": "imp_1"}', ("rejected", "schema")),
        (void("a", "last", importid="imp_2"), UNKNOWN),
        (void("b", "last", time=NOW), MISMATCH),
        (void("c", "last"), COUNTED),
    ]
    asked = Asked(HISTORY)
    batch = records([value for value, _ in sent])
    land(local_lake(tmp_path), tmp_path / "index", slice_of(batch), [batch], asked)
    found = rows(local_lake(tmp_path))
    assert list(found.select("fate", "code").iter_rows()) == [fate for _, fate in sent]
    assert asked.questions == [[("org_a", "imp_1"), ("org_a", "imp_2"), ("org_b", "imp_1")]]
    refused = found.filter(code="import_mismatch", kind="void")
    assert refused.select("event_time", "ref_slice", "quantity").row(0) == (NOW, None, None)


def test_what_was_quarantined_takes_no_identity(tmp_path: Path) -> None:
    """Sent again once its import is declared, it is counted."""
    lake, value = local_lake(tmp_path), usage("e")
    for at, asked in enumerate((Asked(), Asked(HISTORY), Asked(HISTORY))):
        batch = records([value], start=at)
        land(lake, tmp_path / "index", slice_of(batch), [batch], asked)
    assert list(rows(lake).select("fate", "code").iter_rows()) == [UNKNOWN, COUNTED, ("duplicate", None)]


def test_nobody_is_asked_where_no_record_names_an_import(tmp_path: Path) -> None:
    asked, batch = Asked(HISTORY), records([usage("e", importid="", time=NOW), b"not json"])
    land(local_lake(tmp_path), tmp_path / "index", slice_of(batch), [batch], asked)
    assert (asked.questions, rows(local_lake(tmp_path))["fate"].to_list()) == ([], ["counted", "rejected"])


def test_imports_are_those_that_were_declared_to_the_database(postgres: DatabaseSettings) -> None:
    """Of several organisations in one question, to the microsecond."""
    ours, theirs = new_id("org"), new_id("org")
    connection = psycopg2.connect(dsn(postgres, "system"))
    with connection, connection.cursor() as cursor:
        for each, name in ((ours, "imp_1"), (theirs, "imp_2")):
            cursor.execute(
                "insert into organisation (id, slug, name, plan) values (%s, %s, 'Test', 'free')",
                (each, each.replace("_", "-").lower()),
            )
            cursor.execute(
                "insert into usage_import (tenant_id, id, source, period_start, period_end, created_by) "
                "values (%s, %s, 'history', %s, %s, 'x')",
                (each, name, FIRST + TICK, LAST),
            )
    connection.close()
    find, others = declared_in(postgres), [(ours, "imp_2"), ("org_nobody", "imp_1"), (theirs, "'")]
    assert sorted(find([(ours, "imp_1"), (theirs, "imp_2"), *others])) == sorted(
        [(ours, "imp_1", "history", FIRST + TICK, LAST), (theirs, "imp_2", "history", FIRST + TICK, LAST)]
    )
    assert find(others) == []
