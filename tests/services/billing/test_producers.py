"""Who sees which producers, and what of them is missing."""

from typing import Any

from sqlalchemy import text

from core.database import Database
from core.ids import new_id
from tests.services.billing.conftest import Caller

PATH = "/api/v1/usage/producers"


async def add(system: Database, tenant: str, producer: str, number: int, *states: str) -> str:
    """A producer and its checkpoints, as the asset writes them."""
    named = new_id("upr")
    async with system.writer() as connection:
        await connection.execute(
            text("insert into usage_producer values (:t, :id, :p, 'i', 300, now(), now(), :n)"),
            {"t": tenant, "id": named, "p": producer, "n": number},
        )
        for index, state in enumerate(states):
            open_ = state == "incomplete"
            await connection.execute(
                text(
                    "insert into usage_checkpoint (tenant_id, id, producer, incarnation, first_sequence, last_sequence, "
                    "hash, received, slice, slices, due, state, missing, missing_events, named, named_at) values "
                    "(:t, :id, :p, 'i', :first, :last, '', now(), :n, '{}', '{}', :state, cast(:missing as jsonb), :count, "
                    "cast(:named as jsonb), case when :open then now() end)"
                ),
                {
                    "t": tenant, "id": new_id("uck"), "p": producer, "first": index * 100 + 1, "last": index * 100 + 100,
                    "n": number, "state": state, "missing": f"[[{index * 100 + 7}, {index * 100 + 8}]]" if open_ else "[]",
                    "count": 2 if open_ else 0, "named": '{"missing": [[7, 8]], "doubled": []}' if open_ else None,
                    "open": open_,
                },
            )  # fmt: skip
    return named


async def test_everybody_sees_what_the_own_producers_lack(
    acme: Caller, other: Caller, owner: Caller, system_database: Database
) -> None:
    whole = await add(system_database, acme.tenant, "whole", 5, "complete", "waiting")
    lacking = await add(system_database, acme.tenant, "lacking", 4, "incomplete", "complete")
    silent = await add(system_database, acme.tenant, "silent", 3)
    theirs = await add(system_database, other.tenant, "theirs", 9, "incomplete")
    found = await acme.ask(PATH)
    assert [(one["id"], one["state"], one["open"], one["missing"]) for one in found["data"]] == [
        (whole, "waiting", 0, 0),
        (lacking, "incomplete", 1, 2),
        (silent, "unclaimed", 0, 0),
    ]
    [wanting] = found["data"][1]["data"]
    assert (wanting["first"], wanting["last"], wanting["missing"], wanting["closed_at"]) == (
        1,
        100,
        [[7, 8]],
        None,
    )
    assert found["data"][0]["data"] == []
    first = await acme.ask(PATH, limit="1")
    second: Any = await acme.ask(PATH, limit="1", after=first["last_id"])
    assert ([one["id"] for one in second["data"]], second["has_more"]) == ([lacking], True)
    assert [one["id"] for one in (await acme.ask(PATH, incomplete="true"))["data"]] == [lacking]
    shown = await acme.ask(f"{PATH}/{lacking}")
    assert [(one["first"], one["state"]) for one in shown["data"]] == [(1, "incomplete"), (101, "complete")]
    assert (await acme.get(f"{PATH}/{theirs}")).status == 404
    assert (await acme.get(PATH, tenant=other.tenant)).status == 404
    everybody = await owner.ask(PATH, limit="100")
    assert {whole, lacking, theirs} <= {one["id"] for one in everybody["data"]}
    assert (await owner.ask(f"{PATH}/{theirs}", tenant=other.tenant))["tenant"] == other.tenant
    assert (await owner.get(f"{PATH}/{theirs}", tenant=acme.tenant)).status == 404
