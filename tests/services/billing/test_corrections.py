"""Voids and replacements over the API, and what a person's decision becomes in the cells."""

import asyncio
import json
from contextlib import closing
from decimal import Decimal
from pathlib import Path
from typing import Any

import psycopg2
import pytest
from sqlalchemy import text

import deploy
from assets.usage.evidence import evidence
from assets.usage.imports import declared_in
from assets.usage.landing import land
from assets.usage.publish import publish
from assets.usage.rollup import daily, roll_up
from core.clock import now
from core.contracts.usage import UsageEvent, VoidEvent, parse_record
from core.database import Database, dsn
from core.eventlog.api import Record, Slice
from core.ids import derived_id, new_id
from core.lake import Lake
from core.settings import DatabaseSettings
from quality import gates
from services.common.principal import Principal
from tests.assets.usage.lake import local_lake
from tests.assets.usage.test_publish import query
from tests.services.billing.conftest import SCOPES, Caller
from tests.services.billing.test_events import event

MIGRATION = Path(deploy.__file__).parent / "migrations/sql/0007/61_usage_replacement.sql"
REPLACEMENTS = "/api/v1/usage/replacements"
VOID, CHECKPOINT = "headrace.usage.void.v1", "headrace.usage.checkpoint.v1"


def void(source: str, named: str, **fields: Any) -> dict[str, Any]:
    return event(**fields) | {"type": VOID, "data": {"source": source, "id": named}}


class Flow:
    """What the relay, the log and Dagster do with the outbox of one organisation, in one process."""

    def __init__(
        self, lake: Lake, folder: Path, database: DatabaseSettings, system: Database, tenant: str
    ) -> None:
        self.lake, self._folder, self._database, self._system, self._tenant = (
            lake,
            folder,
            database,
            system,
            tenant,
        )
        self._topic_id, self._ends = new_id("topic"), dict.fromkeys(range(4), 0)
        self._taken = 0

    async def carry(self) -> None:
        """Everything that waits: landed, rolled up, checked and published."""
        async with self._system.writer() as connection:
            rows = await connection.execute(
                text(
                    "select id, key, value from outbox where tenant_id = :t and topic = 'usage.records' and id > :id "
                    "order by id"
                ),
                {"t": self._tenant, "id": self._taken},
            )
            waiting = rows.all()
        starts, records = dict(self._ends), []
        for number, key, value in waiting:
            partition = sum(key) % 4  # equal keys, equal partition
            at, self._taken = self._ends[partition], number
            records.append(
                Record(
                    "usage.records", partition, at, bytes(key), bytes(value), int(now().timestamp() * 1000)
                )
            )
            self._ends[partition] += 1
        ranges = {p: (starts[p], end) for p, end in self._ends.items() if end > starts[p]}
        landed = land(
            self.lake, self._folder / "index", Slice("usage.records", self._topic_id, ranges), [records],
            declared_in(self._database),
        )  # fmt: skip
        roll_up(self.lake)
        daily(self.lake)
        found = evidence(self.lake, landed.slice, landed.slice)
        assert gates.conservation(found.conservation).holds
        assert gates.billed(found.billed) + gates.voided(found.voids) == []
        publish(self.lake, self._database)

    async def cells(self) -> dict[str, tuple[Decimal, int]]:
        """Quantity and events by meter, of both grains, which agree."""
        async with self._system.writer() as connection:
            rows = await connection.execute(
                text(
                    "select grain, meter, sum(quantity), sum(events)::int from usage_cell where tenant_id = :t "
                    "group by 1, 2"
                ),
                {"t": self._tenant},
            )
            found: dict[str, dict[str, tuple[Decimal, int]]] = {"hour": {}, "day": {}}
            for grain, meter, quantity, events in rows:
                found[grain][meter] = (quantity, events)
            assert found["hour"] == found["day"]
            return found["hour"]


@pytest.fixture
def flow(acme: Caller, system_database: Database, postgres: DatabaseSettings, tmp_path: Path) -> Flow:
    """Publishes beside nobody: lake versions of other tests are no history of this lake."""
    query(postgres, "truncate usage_publication, usage_watermark")
    return Flow(local_lake(tmp_path), tmp_path, postgres, system_database, acme.tenant)


def person(caller: Caller, **more: Any) -> Caller:
    named = {"tenant_id": caller.tenant, "subject": new_id("usr"), "kind": "user", "scopes": SCOPES} | more
    return caller.acting_as(Principal(**named))


async def outbox(system: Database, tenant: str) -> list[Any]:
    async with system.writer() as connection:
        rows = await connection.execute(
            text("select value from outbox where tenant_id = :t and topic = 'usage.records' order by id"),
            {"t": tenant},
        )
        return [parse_record(bytes(value)) for value in rows.scalars()]


async def test_each_kind_of_record_has_its_verdict(acme: Caller, system_database: Database) -> None:
    claim = {"producer": "p", "first": 1, "last": 3, "count": 3, "hash": "0" * 64}
    answer = await acme.send([
        void("test", "a"),
        event() | {"type": CHECKPOINT, "data": claim},
        event() | {"type": CHECKPOINT, "data": claim | {"count": 2}},
        void("test", ""),
        event(source="agents"),
        void("memory", "a"),
        event(producer="p", sequence=1),
        event(producer="p"),
        event() | {"type": "headrace.usage.v2"},
    ])  # fmt: skip
    verdicts = [(one["status"], one.get("code")) for one in answer.json["verdicts"]]
    assert verdicts == [
        ("accepted", None), ("accepted", None), ("refused", "checkpoint"), ("refused", "schema"),
        ("refused", "reserved_source"), ("refused", "reserved_source"), ("accepted", None),
        ("refused", "producer"), ("refused", "schema"),
    ]  # fmt: skip
    kinds = [type(one).__name__ for one in await outbox(system_database, acme.tenant)]
    assert kinds == ["VoidEvent", "Checkpoint", "UsageEvent"]


async def test_a_replacement_is_both_or_neither_and_once(acme: Caller, system_database: Database) -> None:
    old, new = event(subject="cus_1"), event(quantity="7", subject="cus_1")
    body = {"replaces": {"source": "test", "id": old["id"]}, "subject": "cus_1", "event": new}
    answers = [
        await acme.call("POST", REPLACEMENTS, json=body, headers={"idempotency-key": "k"}) for _ in range(2)
    ]
    assert [answer.status for answer in answers] == [201, 201]
    assert answers[0].json == answers[1].json
    [taken, put] = await outbox(system_database, acme.tenant)
    assert isinstance(taken, VoidEvent)
    assert isinstance(put, UsageEvent)
    assert (taken.data.id, taken.key, put.id, put.key) == (old["id"], put.key, new["id"], put.key)
    assert answers[0].json["void"] == taken.id
    for change, code in (
        ({"event": new | {"id": old["id"]}}, "same_event"),
        ({"event": new | {"data": {"meter": "none.such", "quantity": "1"}}}, "unknown_meter"),
        ({"event": new | {"time": "2001-01-01T00:00:00Z"}}, "time_out_of_limits"),
        ({"event": void("test", "x")}, "schema"),
        ({"replaces": {"source": "agents", "id": "x"}}, "reserved_source"),
        ({"replaces": {"source": "test"}}, "invalid_request"),
    ):
        refused = await acme.call("POST", REPLACEMENTS, json=body | change)
        assert (refused.status, refused.json["code"]) == (422, code)
    assert len(await outbox(system_database, acme.tenant)) == 2


async def test_corrections_reach_the_cells_of_their_own_hour(acme: Caller, flow: Flow) -> None:
    first, second = event(quantity="5", subject="cus_1"), event(quantity="11", subject="cus_2")
    await acme.send([first, second])
    await flow.carry()
    assert await flow.cells() == {"llm.tokens.input": (Decimal(16), 2)}
    body = {"replaces": {"source": "test", "id": first["id"]}, "event": event(quantity="6", subject="cus_1")}
    assert (await acme.call("POST", REPLACEMENTS, json=body)).status == 201
    await acme.send([void("test", second["id"]), void("test", second["id"])])
    await flow.carry()
    assert await flow.cells() == {"llm.tokens.input": (Decimal(6), 1)}
    proof = await acme.ask("/api/v1/billing/invariants")
    assert proof["holds"], proof
    assert (proof["totals"]["voids"], proof["totals"]["duplicates"]) == (2, 1)


async def test_an_accepted_version_takes_the_place_of_the_counted_one(
    acme: Caller, flow: Flow, postgres: DatabaseSettings
) -> None:
    """And a second accepted one the place of the first: one event counts, whatever was decided before."""
    known = event(quantity="5", subject="cus_1")
    said = known["data"]
    await acme.send([known])
    await flow.carry()
    await acme.send([
        known | {"data": said | {"quantity": "7"}}, known | {"data": said | {"quantity": "9"}},
        known | {"data": said | {"quantity": "100"}},
    ])  # fmt: skip
    await flow.carry()
    assert await flow.cells() == {"llm.tokens.input": (Decimal(5), 1)}
    found = (await acme.ask("/api/v1/usage/quarantine", order="asc"))["data"]
    assert [(one["code"], one["version"]["data"]["quantity"], one["counted"]["data"]["quantity"]) for one in found] == [
        ("conflict", "7", "5"), ("conflict", "9", "5"), ("conflict", "100", "5"),
    ]  # fmt: skip
    somebody = person(acme)
    for one, expected in zip(found[:2], (7, 9), strict=True):
        for _ in range(2):
            accepted = await somebody.call("POST", f"/api/v1/usage/quarantine/{one['id']}/accept")
            assert (accepted.status, accepted.json["state"]) == (200, "accepted")
        await flow.carry()
        assert await flow.cells() == {"llm.tokens.input": (Decimal(expected), 1)}
    rejected = await somebody.call("POST", f"/api/v1/usage/quarantine/{found[2]['id']}/reject")
    assert rejected.json["sent"] is None
    shown = await acme.ask(f"/api/v1/usage/quarantine/{found[1]['id']}")
    first = await acme.ask(f"/api/v1/usage/quarantine/{found[0]['id']}")
    assert (first["sent"]["voids"], shown["sent"]["voids"]) == (known["id"], first["sent"]["event"])
    assert (await acme.ask("/api/v1/billing/invariants"))["holds"]
    rows = (
        "select event_id, by_source, by_id, by_subject, created_at from usage_replacement "
        f"where tenant_id = '{acme.tenant}' order by created_at"
    )
    written = query(postgres, rows)
    assert [row[:4] for row in written] == [
        (known["id"], "test", first["sent"]["event"], "cus_1"),
        (first["sent"]["event"], "test", shown["sent"]["event"], "cus_1"),
    ]
    # An installation from before that table has the accepted versions only.
    connection = psycopg2.connect(dsn(postgres, "owner"))
    with closing(connection), connection, connection.cursor() as cursor:
        cursor.execute("drop table usage_replacement")
        cursor.execute(MIGRATION.read_text())
    assert [row[:4] for row in query(postgres, rows)] == [row[:4] for row in written]


async def test_an_event_has_one_successor(acme: Caller, flow: Flow) -> None:
    old, first, second = (event(quantity=q, subject="cus_1") for q in ("5", "6", "7"))
    await acme.send([old])
    await flow.carry()

    def body(replaced: Any, by: Any) -> dict[str, Any]:
        return {"replaces": {"source": "test", "id": replaced["id"]}, "subject": "cus_1", "event": by}

    async def replace(replaced: Any, by: Any) -> tuple[int, str | None]:
        answer = await acme.call("POST", REPLACEMENTS, json=body(replaced, by))
        return answer.status, answer.json.get("code")

    assert [await replace(old, first) for _ in range(2)] == [(201, None)] * 2
    refused = await acme.call("POST", REPLACEMENTS, json=body(old, second))
    assert (refused.status, refused.json["code"]) == (409, "already_replaced")
    assert first["id"] in refused.json["detail"]
    await flow.carry()
    assert await flow.cells() == {"llm.tokens.input": (Decimal(6), 1)}
    assert await replace(first, second) == (201, None)
    # What was taken before is the same again, whatever came behind it.
    assert await replace(old, first) == (201, None)
    assert await replace(second, first) == (422, "replaced_event")
    third, other = event(quantity="9", subject="cus_1"), event(subject="cus_1")
    refused = await acme.call("POST", REPLACEMENTS, json=body(old, third))
    assert refused.json["code"] == "already_replaced"
    assert second["id"] in refused.json["detail"]
    assert await replace(other, second) == (422, "replaced_event")
    await flow.carry()
    assert await flow.cells() == {"llm.tokens.input": (Decimal(7), 1)}
    assert (await acme.ask("/api/v1/billing/invariants"))["holds"]


async def test_of_successors_at_once_one_wins(acme: Caller, flow: Flow) -> None:
    old = event(quantity="5", subject="cus_1")
    await acme.send([old])
    bodies = [
        {"replaces": {"source": "test", "id": old["id"]}, "subject": "cus_1", "event": event(quantity=str(n))}
        for n in range(10, 18)
    ]
    answers = await asyncio.gather(*(acme.call("POST", REPLACEMENTS, json=body) for body in bodies))
    assert sorted(answer.status for answer in answers) == [201] + [409] * 7
    [won] = [n for n, answer in enumerate(answers, 10) if answer.status == 201]
    await flow.carry()
    assert await flow.cells() == {"llm.tokens.input": (Decimal(won), 1)}


async def test_opposite_replacements_at_once_are_no_circle(acme: Caller, flow: Flow) -> None:
    """Both would void the other's event, and nothing would count."""
    for _ in range(5):
        pair = [event(quantity="3", subject="cus_1"), event(quantity="4", subject="cus_1")]
        answers = await asyncio.gather(*(
            acme.call("POST", REPLACEMENTS, json={
                "replaces": {"source": "test", "id": one["id"]}, "subject": "cus_1", "event": other,
            })
            for one, other in (pair, pair[::-1])
        ))  # fmt: skip
        assert sorted(answer.status for answer in answers) == [201, 422]


async def test_the_id_of_a_version_that_is_used_elsewhere_is_refused(acme: Caller, flow: Flow) -> None:
    """Ids of accepted versions can be foreseen: a replacement under such an id must not make a circle of them."""
    known = event(quantity="5", subject="cus_1")
    await acme.send([known])
    await flow.carry()
    await acme.send([known | {"data": known["data"] | {"quantity": quantity}} for quantity in ("7", "8")])
    await flow.carry()
    found = (await acme.ask("/api/v1/usage/quarantine", order="asc"))["data"]
    at = found[0]["coordinates"]
    foreseen = derived_id("quarantine", at["topic_id"], str(at["partition"]), str(at["offset"]))
    other = event(quantity="1", subject="cus_1")
    body = {"replaces": {"source": "test", "id": foreseen}, "subject": "cus_1", "event": other}
    assert (await acme.call("POST", REPLACEMENTS, json=body)).status == 201
    somebody = person(acme)
    refused = await somebody.call("POST", f"/api/v1/usage/quarantine/{found[0]['id']}/accept")
    assert (refused.status, refused.json["code"]) == (422, "not_acceptable")
    assert (await somebody.call("POST", f"/api/v1/usage/quarantine/{found[1]['id']}/accept")).status == 200
    assert (await somebody.call("POST", f"/api/v1/usage/quarantine/{found[0]['id']}/reject")).status == 200


async def test_an_accepted_version_takes_the_place_of_what_replaced_the_counted_one(
    acme: Caller, flow: Flow
) -> None:
    """Replaced over the API and its other version accepted as well: one of them counts, the later one."""
    known = event(quantity="5", subject="cus_1")
    await acme.send([known])
    await flow.carry()
    await acme.send([known | {"data": known["data"] | {"quantity": "7"}}])
    # Of another source, and of somebody else, so that it lies in another partition.
    other = event(quantity="6", subject="cus_2", source="crm")
    body = {"replaces": {"source": "test", "id": known["id"]}, "subject": "cus_1", "event": other}
    assert (await acme.call("POST", REPLACEMENTS, json=body)).status == 201
    await flow.carry()
    [found] = (await acme.ask("/api/v1/usage/quarantine"))["data"]
    accepted = await person(acme).call("POST", f"/api/v1/usage/quarantine/{found['id']}/accept")
    assert (accepted.json["sent"]["voids"], accepted.json["sent"]["voids_source"]) == (other["id"], "crm")
    await flow.carry()
    assert await flow.cells() == {"llm.tokens.input": (Decimal(7), 1)}
    named = {"source": "test", "id": known["id"]}
    again = {"replaces": named, "subject": "cus_1", "event": event(quantity="8")}
    assert (await acme.call("POST", REPLACEMENTS, json=again)).json["code"] == "already_replaced"
    named["id"] = accepted.json["sent"]["event"]
    assert (await acme.call("POST", REPLACEMENTS, json=again)).status == 201
    await flow.carry()
    assert await flow.cells() == {"llm.tokens.input": (Decimal(8), 1)}
    assert [one["code"] for one in (await acme.ask("/api/v1/usage/quarantine"))["data"]] == ["conflict"]
    assert (await acme.ask("/api/v1/billing/invariants"))["holds"]


async def past_the_api(acme: Caller, system: Database, values: list[dict[str, Any]]) -> None:
    """As a producer that writes the topic itself, where the API would refuse."""
    async with system.writer() as connection:
        for value in values:
            read = parse_record(json.dumps(value).encode())
            await connection.execute(
                text(
                    "insert into outbox (tenant_id, topic, key, value) values (:t, 'usage.records', :k, :v)"
                ),
                {"t": acme.tenant, "k": read.key, "v": read.encode()},
            )


async def test_what_names_an_import_that_was_not_declared_so_counts_once_accepted(
    acme: Caller, flow: Flow, system_database: Database
) -> None:
    old = {"tenant": acme.tenant, "time": "2010-01-01T10:30:00.000001Z"}
    body = {"source": "history", "period_start": "2010-01-01T00:00:00Z", "period_end": "2010-02-01T00:00:00Z"}
    declared = (await acme.call("POST", "/api/v1/usage/imports", json=body)).json["id"]
    await past_the_api(acme, system_database, [
        event(quantity="1", importid="imp_nobody", tenant=acme.tenant), event(quantity="2", importid="imp_nobody", **old),
        event(quantity="4", importid=declared, **old), event(quantity="8", importid=declared, source="history", **old),
    ])  # fmt: skip
    await flow.carry()
    assert await flow.cells() == {"llm.tokens.input": (Decimal(8), 1)}
    found = (await acme.ask("/api/v1/usage/quarantine", order="asc"))["data"]
    assert sorted(one["code"] for one in found) == ["import_mismatch", "unknown_import", "unknown_import"]
    for one in found:
        answer = await person(acme).call("POST", f"/api/v1/usage/quarantine/{one['id']}/accept")
        assert answer.status == 200, answer.json
    await flow.carry()
    assert await flow.cells() == {"llm.tokens.input": (Decimal(15), 4)}
    assert (await acme.ask("/api/v1/billing/invariants"))["holds"]


async def test_what_was_out_of_limits_and_a_void_that_came_too_early_count_once_accepted(
    acme: Caller, flow: Flow, system_database: Database
) -> None:
    ancient = event(quantity="3", time="2010-01-01T10:30:00.000001Z", tenant=acme.tenant)
    await past_the_api(acme, system_database, [ancient, void("test", ancient["id"], tenant=acme.tenant)])
    await flow.carry()
    assert await flow.cells() == {}
    found = (await acme.ask("/api/v1/usage/quarantine", order="asc"))["data"]
    assert [one["code"] for one in found] == ["out_of_limits", "unknown_reference"]
    somebody = person(acme)
    await somebody.call("POST", f"/api/v1/usage/quarantine/{found[0]['id']}/accept")
    await flow.carry()
    assert await flow.cells() == {"llm.tokens.input": (Decimal(3), 1)}
    await somebody.call("POST", f"/api/v1/usage/quarantine/{found[1]['id']}/accept")
    await flow.carry()
    assert await flow.cells() == {"llm.tokens.input": (Decimal(0), 0)}
