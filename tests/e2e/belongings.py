"""What an organisation has in agents and memory, with its marker in all of it; how routes name it."""

import asyncio
import hashlib
import json
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import httpx2
from sqlalchemy import text

from core.clock import now, rfc3339
from core.database import Database
from core.ids import new_id
from core.queue.api import NewMessage
from core.queue.postgres import PostgresQueue
from core.settings import DatabaseSettings, ObjectSettings, VectorSettings
from tests.services.memory.platform import Indexer
from tests.services.memory.platform import Platform as IndexedPlatform

if TYPE_CHECKING:
    from tests.e2e.tenants import Side

QUEUE = "notification.push"
NOWHERE = "http://127.0.0.1:9"
"""Where the organisations' providers would be: nobody listens there."""


@dataclass(frozen=True)
class Belongings:
    """Ids, each of which betrays its organisation."""

    agent: str
    conversation: str
    run: str
    provider: str
    base: str
    document: str
    """Stored, indexed and visible."""
    memory: str
    """Of the organisation's person."""
    letter: str
    """Dead, in a queue that nobody takes from."""
    spare_letter: str
    """One more, that may be discarded."""
    quarantined: str
    acknowledged: str
    """Two records that were not counted; the second is there to be rejected."""
    producer: str
    """Of events, one of which is missing."""
    waiting: str
    """A run that waits for a person."""
    call: str
    """What it asks about."""

    @property
    def ids(self) -> tuple[str, ...]:
        return tuple(asdict(self).values())

    @property
    def response(self) -> str:
        """The run's name below `/v1`."""
        return "resp_" + self.run.removeprefix("run_")


def ways(path: str, side: "Side") -> dict[str, list[str]]:
    """How the parameters of a path of agents, memory or billing can name what belongs to `side`."""
    has = side.has
    by_collection = {
        "agents": [has.agent, side.slug],
        "conversations": [has.conversation],
        "runs": [has.waiting if "/approvals" in path else has.run],
        "providers": [has.provider],
        "knowledge-bases": [has.base],
        "documents": [has.document, has.memory],
        "memories": [has.memory],
        "dead-letters": [has.letter, has.spare_letter],
        "producers": [has.producer],
        "quarantine": [has.acknowledged if path.endswith("/reject") else has.quarantined],
    }
    collection = path.partition("/{id}")[0].rpartition("/")[2]
    return {
        "id": by_collection.get(collection, [side.id]),
        "version": ["1"],
        "call": [has.call],
        "response": [has.response],
        "model": [f"{side.slug}/model", f"agent:{side.slug}"],
    }


def bodies(ours: "Side", theirs: "Side") -> dict[str, Any]:
    """Bodies that we may send to agents and memory, naming them wherever the contract has a place for it."""
    fresh = new_id("x").replace("_", "-")
    agent = f"agent:{theirs.slug}"
    return {
        "POST /api/v1/agents": {"slug": fresh, "name": ours.marker, "model": "nowhere/model"},
        "PATCH /api/v1/agents/{id}": {"name": ours.marker},
        "POST /api/v1/agents/{id}/publish": {"version": 1},
        "POST /api/v1/agents/{id}/runs": {"input": "x", "conversation_id": theirs.has.conversation},
        "POST /api/v1/runs/{id}/approvals/{call}": {"decision": "reject", "note": ours.marker},
        "POST /api/v1/conversations": {"agent": theirs.has.agent},
        "PATCH /api/v1/conversations/{id}": {"title": ours.marker},
        "POST /api/v1/conversations/{id}/messages": {"text": "x", "agent": theirs.has.agent},
        "POST /api/v1/conversations/{id}/attachments": ours.marker,
        "POST /api/v1/providers": {"name": fresh, "base_url": NOWHERE, "api_key": "k"},
        "PATCH /api/v1/providers/{id}": {"models": ["model"]},
        "POST /v1/chat/completions": {"model": agent, "messages": [{"role": "user", "content": "x"}]},
        "POST /v1/embeddings": {"model": f"{theirs.slug}/model", "input": "x"},
        "POST /v1/responses": {
            "model": f"agent:{ours.slug}", "input": "x", "previous_response_id": theirs.has.response,
        },
        "POST /api/v1/knowledge-bases": {"slug": fresh, "name": ours.marker},
        "PATCH /api/v1/knowledge-bases/{id}": {"name": ours.marker},
        "POST /api/v1/knowledge-bases/{id}/documents": {"name": "x.txt"},
        "POST /api/v1/documents/{id}/versions": {"media_type": "text/plain"},
        "POST /api/v1/search": {
            "query": said(theirs.marker), "knowledge_bases": [theirs.has.base], "memories": True,
        },
    }  # fmt: skip


def said(marker: str) -> str:
    """The content of the document."""
    return f"The secret of this organisation is {marker}."


async def provide(
    gateway: str, environment: dict[str, str], database: Database, key: str, person: str, marker: str
) -> Belongings:
    """Make all of it through the API with `key`; what only Dagster or a finished turn makes, as role `system`."""

    async with httpx2.AsyncClient(
        base_url=gateway, timeout=30, headers={"authorization": f"Bearer {key}"}
    ) as client:

        async def post(path: str, body: object) -> Any:
            return (await client.post(f"/api/v1/{path}", json=body)).raise_for_status().json()

        provider = await post(
            "providers",
            {"name": marker, "base_url": f"{NOWHERE}/{marker}", "api_key": marker, "models": ["model"]},
        )
        agent = await post(
            "agents", {"slug": marker, "name": marker, "model": "nowhere/model", "instructions": marker}
        )
        talk = await post("conversations", {"agent": agent["id"], "title": marker})
        sent = await post(f"conversations/{talk['id']}/messages", {"text": marker})
        stopped = await post("conversations", {"agent": agent["id"], "title": marker})
        base = await post("knowledge-bases", {"slug": marker, "name": marker})
        announced = await post(f"knowledge-bases/{base['id']}/documents", {"name": f"{marker}.txt"})
        stored = await client.put(announced["upload"]["url"], content=said(marker).encode())
        stored.raise_for_status()
        document = announced["document"]["id"]
        async with database.writer() as connection:
            tenant = str(
                await connection.scalar(
                    text("select tenant_id from document where id = :id"), {"id": document}
                )
            )
        await _index(environment, database, tenant, document)
        memory = await _remember(database, tenant, person, marker)
        async with asyncio.timeout(60):
            while (await client.get(f"/api/v1/runs/{sent['run']}")).json()["ended_at"] is None:  # noqa: ASYNC110 - of another process
                await asyncio.sleep(0.05)
        letters = await _bury(environment, tenant, marker)
    left = [await _quarantine(database, tenant, marker) for _ in range(2)]
    left.append(await _produce(database, tenant, marker))
    left += await _ask(database, tenant, stopped, marker)
    return Belongings(
        agent["id"], talk["id"], sent["run"], provider["id"], base["id"], document, memory, *letters, *left
    )


async def _ask(database: Database, tenant: str, talk: Any, marker: str) -> tuple[str, str]:
    """A run that waits, and the call it asks about, as the recorder leaves them."""
    named = {
        "tenant": tenant, "run": new_id("run"), "call": new_id("tcl"), "talk": talk["id"],
        "person": talk["user_id"], "agent": talk["agent_id"], "marker": marker,
    }  # fmt: skip
    async with database.writer() as connection:
        for statement in (
            "update conversation set turns = 1 where id = :talk",
            "insert into run (tenant_id, id, conversation_id, turn, user_id, agent_id, agent_version, spec, status,"
            " epoch, last_seq, safe_seq, started_at, waiting_since) values (:tenant, :run, :talk, 1, :person, :agent, 1,"
            """ '{"model": "nowhere/model"}', 'waiting', 1, 3, 3, now(), now())""",
            "insert into approval (tenant_id, run_id, call, round, tool, arguments, reason, expires_at) values"
            " (:tenant, :run, :call, 1, 'calculator', :marker, 'policy', now() + interval '24 hours')",
        ):
            used = {name: value for name, value in named.items() if f":{name}" in statement}
            await connection.execute(text(statement), used)
    return named["run"], named["call"]


async def _produce(database: Database, tenant: str, marker: str) -> str:
    """A producer and a checkpoint that lacks an event, as the asset writes them."""
    named = {"tenant": tenant, "marker": marker, "producer": new_id("upr"), "checkpoint": new_id("uck")}
    async with database.writer() as connection:
        for statement in (
            "insert into usage_producer values (:tenant, :producer, :marker, '', 3, now(), now(), 1)",
            "insert into usage_checkpoint (tenant_id, id, producer, incarnation, first_sequence, last_sequence, hash,"
            " received, slice, slices, due, state, missing, missing_events, named_at) values (:tenant, :checkpoint,"
            " :marker, '', 1, 3, '', now(), 1, '{}', '{}', 'incomplete', '[[2, 2]]', 1, now())",
        ):
            used = {name: value for name, value in named.items() if f":{name}" in statement}
            await connection.execute(text(statement), used)
    return named["producer"]


async def _quarantine(database: Database, tenant: str, marker: str) -> str:
    """A record that was not counted, as the publication shows it."""
    record, said = new_id("uqr"), {"meter": "llm.tokens.input", "quantity": "1", "dimensions": {}}
    async with database.writer() as connection:
        await connection.execute(
            text(
                "insert into usage_quarantine (tenant_id, id, fate, code, kind, received, slice, topic_id, partition,"
                " log_offset, source, event_id, version, lake_version) values (:tenant, :id, 'quarantined',"
                " 'out_of_limits', 'usage', now(), 1, 'x', 0, 0, :marker, :id, cast(:version as jsonb), 1)"
            ),
            {
                "tenant": tenant, "id": record, "marker": marker,
                "version": json.dumps({"time": "2020-01-01T00:00:00Z", "subject": marker, "data": said}),
            },
        )  # fmt: skip
    return record


async def _index(environment: dict[str, str], database: Database, tenant: str, document: str) -> None:
    """Make the document visible and found, as the index in Dagster does."""
    settings = {name.removeprefix("HEADRACE_").lower(): value for name, value in environment.items()}
    indexer = Indexer(
        IndexedPlatform(
            address="",
            grpc="",
            database=DatabaseSettings.model_validate(_known(DatabaseSettings, settings)),
            objects=ObjectSettings.model_validate(_known(ObjectSettings, settings)),
            vectors=VectorSettings.model_validate(_known(VectorSettings, settings)),
            environment=environment,
        ),
        database,
    )
    try:
        await indexer.index(tenant, document)
    finally:
        indexer.vectors.close()


def _known(kind: Any, settings: dict[str, str]) -> dict[str, str]:
    return {name: settings[name] for name in kind.model_fields if name in settings}


async def _remember(database: Database, tenant: str, person: str, marker: str) -> str:
    """A memory of the person, waiting for the index."""
    memory = new_id("mem")
    values = {
        "tenant": tenant,
        "id": memory,
        "person": person,
        "name": marker,
        "key": f"{tenant}/{memory}/1",
        "sha256": hashlib.sha256(marker.encode()).hexdigest(),
    }
    async with database.writer() as connection:
        for statement in (
            "insert into document (tenant_id, id, kind, user_id, name, last_version, created_by)"
            " values (:tenant, :id, 'memory', :person, :name, 1, :person)",
            "insert into document_version (tenant_id, document_id, version, media_type, size, sha256, object_key,"
            " state, created_by) values (:tenant, :id, 1, 'text/plain', 1, :sha256, :key, 'uploading', :person)",
        ):
            await connection.execute(text(statement), values)
    return memory


async def _bury(environment: dict[str, str], tenant: str, marker: str) -> tuple[str, str]:
    """Two messages that their queue gave up."""
    settings = {name.removeprefix("HEADRACE_").lower(): value for name, value in environment.items()}
    headers = (
        ("x-tenant", tenant.encode()),
        ("x-reason", marker.encode()),
        ("x-died-at", rfc3339(now()).encode()),
    )
    names = new_id("mq"), new_id("mq")
    async with PostgresQueue(DatabaseSettings.model_validate(_known(DatabaseSettings, settings))) as queue:
        await queue.publish([NewMessage("", f"{QUEUE}.dlq", name, b"{}", headers) for name in names])
    return f"{QUEUE}:{names[0]}", f"{QUEUE}:{names[1]}"


def variables(folder: Path, vectors: VectorSettings, grpc_port: int) -> dict[str, str]:
    """What agents, memory and ws are told beside what every service is told."""
    return {
        "HEADRACE_OBJECTS_URL": (folder / "objects").as_uri(),
        "HEADRACE_VECTORS_URL": vectors.vectors_url,
        "HEADRACE_EMBEDDING_MODEL": vectors.embedding_model,
        "HEADRACE_MEMORY_GRPC": f"127.0.0.1:{grpc_port}",
        "HEADRACE_STATE_DIR": str(folder / "state"),
        "HEADRACE_QUEUE_URL": "postgresql:",
        "HEADRACE_PROVIDER_HOSTS": "127.0.0.1",
    }
