"""Acceptance check 11: lines to the events whose rating they are, events to their lines or exactly one reason."""

import random
import sys
from collections.abc import Callable, Iterator, Sequence
from datetime import UTC, datetime
from decimal import Decimal
from typing import Any

import pytest

from core.decimals import EXACT, total
from core.invoices.periods import month
from core.prices import PriceBook
from core.prices.table import read_prices
from core.rating import Usage, rate
from tests.services.lookup.world import CLOSED, DAYS, ELEMENTS, INVOICES, MONTH, OPEN, PEAK, USERS, World

TRACE = "/api/v1/usage/trace"
LINES, EVENTS = 60, 80

pytestmark = pytest.mark.timeout(1200)


def events_of(world: World, tenant: str, invoice: str, line: int, limit: int = 500) -> tuple[Any, list[Any]]:
    """The proof of a line, and its events of all pages."""
    found, after, proof = list[Any](), "", None
    while True:
        page = world.on.call(
            "GET", f"{INVOICES}/{invoice}/lines/{line}/events", tenant=tenant,
            params={"limit": str(limit), **({"after": after} if after else {})},
        )  # fmt: skip
        proof = proof or page["proof"]
        found += page["data"]
        after = page["last_id"]
        if not page["has_more"]:
            return proof, found


def every_line(world: World) -> Iterator[tuple[str, Any, int, Any]]:
    """Organisation, document, number and line of everything that was issued."""
    for tenant in world.tenants:
        for document in world.documents(tenant):
            for number, line in enumerate(document["lines"], 1):
                yield tenant, document, number, line


def rated(world: World, tenant: str, events: Sequence[Any], revision: int, meter: str) -> Any:
    """What the events that the API named come to, by the price book as of a revision."""
    prices = world.on.system(read_prices)
    book = PriceBook(tenant, prices).as_of(revision)
    usage = [Usage(one["meter"], one["dimensions"], hour_of(one), Decimal(one["quantity"])) for one in events]
    return [line for line in rate(usage, book, month(MONTH)).lines if line.price.meter == meter]


def hour_of(event: Any) -> datetime:
    return datetime.fromisoformat(event["time"]).astimezone(UTC).replace(minute=0, second=0, microsecond=0)


def standing(events: Sequence[Any]) -> list[Any]:
    """The events among rows that no void among them takes out."""
    voided = {one["id"].removeprefix("v-") for one in events if one["kind"] == "void"}
    return [one for one in events if one["kind"] == "usage" and one["id"] not in voided]


def value(meter: str, events: Sequence[Any]) -> Decimal:
    """What rows of a meter come to together."""
    if meter not in ELEMENTS:
        return total(Decimal(one["quantity"]) for one in events)
    found = standing(events)
    if meter == USERS:
        return Decimal(len({one["dimensions"]["user"] for one in found}))
    if meter == PEAK:
        return max(Decimal(one["quantity"]) for one in found)
    return Decimal(max(found, key=lambda one: one["time"])["quantity"])


def test_11_the_events_of_a_line_rate_to_the_line(world: World) -> None:
    """Of invoices, adjustments for late usage and price fixes: what is paged out adds up to the quantity, and
    an invoice's line is what its events rate to."""
    lines = list(every_line(world))
    assert {document["reason"] for _, document, _, _ in lines} == {
        "service_period",
        "late_usage",
        "price_fix",
    }
    chosen = random.Random(11).sample(lines, min(LINES, len(lines)))
    chosen += [one for one in lines if one[3]["meter"] in ELEMENTS and one not in chosen]
    named, late = 0, 0
    for tenant, document, number, line in chosen:
        proof, events = events_of(world, tenant, document["id"], number)
        where = (document["number"], number, line)
        assert proof["verified"], where
        assert (
            proof["charged"]
            == proof["recomputed"]
            == {name: line[name] for name in ("quantity", "amount_unrounded", "amount")}
        ), where
        named += len(events)
        assert len({one["place"] for one in events}) == len(events)
        assert {one["meter"] for one in events} <= {line["meter"]}
        if line["meter"] in ELEMENTS and document["reason"] == "late_usage":
            assert events, where
            late += 1
            continue
        quantity = value(line["meter"], events)
        if document["reason"] == "service_period":
            assert len(standing(events)) == proof["events"], where
        if document["reason"] == "late_usage" and document["generation"] > 1:
            # The tables were made anew since: no slice says what came, so all that the line rests on is listed.
            assert quantity == Decimal(line["after"]["quantity"]), where
        elif document["reason"] != "price_fix":
            assert quantity == Decimal(line["quantity"]), where
        if document["reason"] == "service_period" and line["meter"] not in ELEMENTS:
            (again,) = rated(world, tenant, events, document["price_revision"], line["meter"])
            assert (str(again.amount), again.amount_unrounded) == (
                line["amount"], Decimal(line["amount_unrounded"]),
            )  # fmt: skip
        if document["reason"] == "price_fix":
            old, new = (
                rated(world, tenant, events, revision, line["meter"])[0].amount_unrounded
                for revision in (document["price_revision"] - 1, document["price_revision"])
            )
            assert EXACT.subtract(new, old) == Decimal(line["amount_unrounded"])
    assert {line["meter"] for _, document, _, line in chosen if document["reason"] == "service_period"} >= {
        *ELEMENTS
    }
    assert late
    sys.stdout.write(f"{len(chosen)} of {len(lines)} lines, {named} events: every line verified\n")


def test_11_lines_of_the_draft_are_traced_as_well(world: World) -> None:
    seen = 0
    world.land(200, CLOSED, DAYS, mischief=False)  # whatever was adjusted before
    for tenant in world.tenants:
        draft = world.on.call("GET", f"{INVOICES}/draft", tenant=tenant)
        lines = draft["lines"] + [line for one in draft["adjustments"] for line in one["lines"]]
        assert draft["adjustments"]
        made_anew = len({one["generation"] for one in world.documents(tenant)}) > 1
        for number, line in enumerate(lines, 1):
            proof, events = events_of(world, tenant, "draft", number)
            assert proof["verified"], line
            assert proof["recomputed"]["amount"] == line["amount"]
            assert len({one["place"] for one in events}) == len(events)
            late = number > len(draft["lines"])
            if late and made_anew:  # as of issued lines: all that the line rests on is listed
                assert value(line["meter"], events) == Decimal(line["after"]["quantity"])
            elif not late or line["meter"] not in ELEMENTS:
                assert value(line["meter"], events) == Decimal(line["quantity"])
            seen += 1
        world.on.call("GET", f"{INVOICES}/draft/lines/{len(lines) + 1}/events", tenant=tenant, status=404)
    sys.stdout.write(f"{seen} lines of drafts verified\n")


def test_11_an_event_is_on_its_lines_or_has_one_reason(world: World) -> None:
    keys = random.Random(12).sample(sorted(world.events), EVENTS)
    for rare in ("voided", "quarantined"):
        keys += [key for key in sorted(world.events) if world.fates[key] == rare][:3]
    seen: dict[str, int] = {}
    for tenant, source, event_id in keys:
        event, fate = world.events[tenant, source, event_id], world.fates[tenant, source, event_id]
        found = world.on.call("GET", TRACE, tenant=tenant, params={"source": source, "id": event_id})
        state = found["state"]
        seen[state] = seen.get(state, 0) + 1
        assert (found["event"]["source"], found["event"]["id"]) == (source, event_id)
        assert Decimal(found["event"]["quantity"]) == Decimal(event.data.quantity)
        if fate != "counted":
            assert state == fate, found
            continue
        if event.data.meter == "storage.bytes":
            assert (state, found["lines"]) == ("unpriced", [])
            continue
        april = event.time >= OPEN
        if event.data.meter in ELEMENTS and not april and state == "no_difference":
            continue  # it is late, and another one decides
        assert state in {"invoiced", "not_invoiced"}, found
        charged = [line for line in found["lines"] if line["effect"] in {"charged", "draft"}]
        (line,) = charged
        if event.data.meter in ELEMENTS and line["line"] is None:
            continue  # it changed nothing of the document that came to count it
        if event.data.meter == "llm.tokens.input":
            assert line["dimensions"] == event.data.dimensions
        if april:
            assert state == "not_invoiced"
        _, events = events_of(world, tenant, line["number"] or "draft", line["line"], 1000)
        assert event_id in {one["id"] for one in events}, found
    assert {"invoiced", "not_invoiced", "unpriced", "voided", "quarantined"} <= seen.keys()
    sys.stdout.write(
        f"{len(keys)} events: {', '.join(f'{n} {state}' for state, n in sorted(seen.items()))}\n"
    )


def test_11_a_reading_that_does_not_decide_is_on_the_line_all_the_same(world: World) -> None:
    """A lower reading than the greatest, an earlier one than the latest, a user for the second time: all are open."""
    tenant = world.tenants[0]
    lines = world.on.call("GET", f"{INVOICES}/draft", tenant=tenant)["lines"]
    for meter in ELEMENTS:
        (number,) = (number for number, line in enumerate(lines, 1) if line["meter"] == meter)
        _, events = events_of(world, tenant, "draft", number)
        april = {
            (key[1], key[2])
            for key, event in world.events.items()
            if key[0] == tenant
            and event.data.meter == meter
            and event.time >= OPEN
            and world.fates[key] == "counted"
        }
        assert len(april) > 2
        assert {(one["source"], one["id"]) for one in standing(events)} == april
        for source, event_id in sorted(april)[:8]:
            found = world.on.call("GET", TRACE, tenant=tenant, params={"source": source, "id": event_id})
            assert (found["state"], [one["line"] for one in found["lines"]]) == ("not_invoiced", [number]), (
                found
            )


def test_11_a_record_is_named_by_where_it_stood(world: World) -> None:
    """A duplicate, a conflict, rubbish, a void: each by its coordinates, with the record that counts."""
    rows = world.on.site.lake().open("usage_events").to_pyarrow_table().to_pylist()  # type: ignore[union-attr]
    kinds: dict[str, Callable[[Any], bool]] = {
        "duplicate": lambda row: row["fate"] == "duplicate",
        "quarantined": lambda row: row["code"] == "conflict",
        "rejected": lambda row: row["fate"] == "rejected",
        "void": lambda row: row["kind"] == "void" and row["fate"] == "counted",
    }
    for state, wanted in kinds.items():
        row = next(row for row in rows if wanted(row))
        place = {"partition": str(row["partition"]), "offset": str(row["offset"])}
        found = world.on.call("GET", TRACE, tenant=row["tenant"], params=place)
        assert found["state"] == state
        assert found["event"]["coordinates"]["offset"] == row["offset"]
        assert found["event"]["coordinates"]["object"].endswith(".parquet")
        if state in {"duplicate", "quarantined"}:
            assert found["other"]["coordinates"]["offset"] == row["winner_offset"]
            assert (found["other"]["source"], found["other"]["id"]) == (row["source"], row["event_id"])
        if state == "void":
            assert found["other"]["coordinates"]["offset"] == row["ref_offset"]
        stranger = next(tenant for tenant in world.tenants if tenant != row["tenant"])
        world.on.call("GET", TRACE, tenant=stranger, params=place, status=404)


def test_an_event_and_an_invoice_of_another_are_not_there(world: World) -> None:
    (tenant, source, event_id), stranger = next(iter(world.events)), world.tenants[0]
    if tenant == stranger:
        stranger = world.tenants[1]
    world.on.call("GET", TRACE, tenant=stranger, params={"source": source, "id": event_id}, status=404)
    document = world.documents(tenant)[0]
    for path in (f"{INVOICES}/{document['id']}/lines/1/events", f"{INVOICES}/{document['id']}/verification"):
        world.on.call("GET", path, tenant=stranger, status=404)
    world.on.call("GET", f"{INVOICES}/{document['id']}/lines/1000/events", tenant=tenant, status=404)


def test_what_was_accepted_waits_to_land_and_what_nobody_sent_is_unknown(world: World) -> None:
    tenant, event = world.tenants[0], world.events[next(iter(world.events))]
    sent = {
        "specversion": "1.0", "type": "headrace.usage.v1", "id": 'waits "1"', "source": "crm",
        "time": datetime.now(UTC).isoformat(), "data": {"meter": event.data.meter, "quantity": "1"},
    }  # fmt: skip
    params = {"source": "crm", "id": 'waits "1"'}
    world.on.call("GET", TRACE, tenant=tenant, params=params, status=404)
    world.send_by_api(tenant, sent)
    assert world.on.call("GET", TRACE, tenant=tenant, params=params)["state"] == "not_landed"
    world.on.call("GET", TRACE, tenant=world.tenants[1], params=params, status=404)


def test_a_question_that_names_no_event_is_refused(world: World) -> None:
    for params in (
        {},
        {"source": "crm"},
        {"partition": "0"},
        {"source": "crm", "id": "x", "partition": "0", "offset": "1"},
    ):
        world.on.call("GET", TRACE, tenant=world.tenants[0], params=params, status=422)
