"""A memory service with its servers, callers of it, and a stand-in for the index that runs in Dagster."""

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import aiohttp
from sqlalchemy import text

from core.clock import now
from core.database import Database
from core.embedding import open_model
from core.ids import new_id
from core.knowledge import derived
from core.knowledge.terms import terms
from core.objects import open_objects
from core.settings import DatabaseSettings, ObjectSettings, VectorSettings
from core.vectors import Chunk, Vectors, chunk_id
from services.common.principal import HEADER, Principal, sign

SCOPES = frozenset({"memory:read", "memory:write"})
CHUNK = 60


@dataclass(frozen=True)
class Platform:
    address: str
    grpc: str
    database: DatabaseSettings
    objects: ObjectSettings
    vectors: VectorSettings
    environment: dict[str, str]

    @property
    def key(self) -> bytes:
        return bytes.fromhex(self.environment["HEADRACE_INTERNAL_KEY"])

    def header(self, principal: Principal) -> str:
        return sign(principal, self.key)


@dataclass(frozen=True)
class Reply:
    status: int
    json: Any


@dataclass(frozen=True)
class Caller:
    """Calls the service as one person of one organisation."""

    http: aiohttp.ClientSession
    platform: Platform
    principal: Principal

    @property
    def tenant(self) -> str:
        return self.principal.tenant_id

    def colleague(self, **changes: Any) -> "Caller":
        changed = {"subject": new_id("usr"), **changes}
        return replace(self, principal=_replaced(self.principal, changed))

    async def call(self, method: str, path: str, body: object = None) -> Reply:
        headers = {HEADER: self.platform.header(self.principal)}
        async with self.http.request(
            method, self.platform.address + path, json=body, headers=headers
        ) as answer:
            content = await answer.read()
            return Reply(answer.status, await answer.json(content_type=None) if content else None)

    async def base(self, slug: str = "handbook") -> str:
        made = await self.call("POST", "/api/v1/knowledge-bases", {"slug": slug, "name": slug.title()})
        assert made.status == 201, made.json
        return str(made.json["id"])

    async def announce(self, base: str, name: str, **more: object) -> Reply:
        return await self.call("POST", f"/api/v1/knowledge-bases/{base}/documents", {"name": name, **more})

    async def put(self, url: str, content: bytes) -> Reply:
        token = url.rpartition("/")[2]
        async with self.http.put(f"{self.platform.address}/api/v1/uploads/{token}", data=content) as answer:
            return Reply(answer.status, await answer.json())

    async def upload(self, base: str, name: str, content: str) -> str:
        """A stored document; its id."""
        announced = await self.announce(base, name)
        assert announced.status == 202, announced.json
        stored = await self.put(announced.json["upload"]["url"], content.encode())
        assert stored.status == 200, stored.json
        assert stored.json["state"] == "queued"
        return str(announced.json["document"]["id"])

    async def search(self, query: str, **more: object) -> Any:
        found = await self.call("POST", "/api/v1/search", {"query": query, **more})
        assert found.status == 200, found.json
        return found.json


def _replaced(principal: Principal, changes: dict[str, Any]) -> Principal:
    fields = {name: getattr(principal, name) for name in principal.__struct_fields__}
    return Principal(**{**fields, **changes})


async def person(system: Database) -> Principal:
    """A person of a new organisation."""
    tenant = new_id("org")
    async with system.writer() as connection:
        await connection.execute(
            text("insert into organisation (id, slug, name, plan) values (:id, :slug, 'Test', 'free')"),
            {"id": tenant, "slug": tenant.replace("_", "-")},
        )
    return Principal(tenant_id=tenant, subject=new_id("usr"), kind="user", scopes=SCOPES)


class Indexer:
    """Does to a queued version what the index does: text, chunks, vectors, then the flip, then the old ones."""

    def __init__(self, platform: Platform, system: Database) -> None:
        self._system = system
        self._objects = (platform.objects, platform.database)
        self.vectors = Vectors(platform.vectors)
        self.model = open_model(platform.vectors, state_dir=None)  # type: ignore[arg-type]
        self.vectors.ensure(self.model)

    def chunks(
        self, tenant: str, document: str, version: int, content: str, base: str, user: str
    ) -> Sequence[Chunk]:
        found = []
        for number, start in enumerate(range(0, len(content), CHUNK)):
            piece = content[start : start + CHUNK]
            found.append(
                Chunk(
                    id=chunk_id(tenant, base, document, version, number, piece),
                    document=document,
                    version=version,
                    number=number,
                    text=piece,
                    terms=terms(piece),
                    vector=self.model.passages([piece])[0].tolist(),
                    start=start,
                    end=start + len(piece),
                    knowledge_base=base,
                    user=user,
                )
            )
        return found

    async def index(self, tenant: str, document: str, *, keep_old: bool = False) -> int:
        """Index the newest version; returns its number."""
        async with self._system.writer() as connection:
            row = (
                await connection.execute(
                    text(
                        "select v.version, v.object_key, v.object_version, coalesce(d.knowledge_base_id, '') base, "
                        "d.user_id from document_version v join document d "
                        "on d.tenant_id = v.tenant_id and d.id = v.document_id "
                        "where v.tenant_id = :tenant and v.document_id = :id and v.state = 'queued' "
                        "order by v.version desc limit 1"
                    ),
                    {"tenant": tenant, "id": document},
                )
            ).one()
        async with open_objects(*self._objects) as objects:
            raw = await objects.get("knowledge", row.object_key, version=row.object_version)
            key = derived.text_key(tenant, hashlib.sha256(raw).hexdigest(), "test-1")
            await objects.put(derived.BUCKET, key, raw)
        chunks = self.chunks(tenant, document, row.version, raw.decode(), row.base, row.user_id)
        self.vectors.upsert(tenant, chunks)
        assert self.vectors.count(tenant, document, row.version) == len(chunks)
        async with self._system.writer() as connection:
            named = {"tenant": tenant, "id": document, "version": row.version}
            await connection.execute(
                text(
                    "update document_version set state = 'indexed', text_key = :key, chunks = :chunks, stage_at = :at "
                    "where tenant_id = :tenant and document_id = :id and version = :version"
                ),
                {**named, "key": key, "chunks": len(chunks), "at": now()},
            )
            await connection.execute(
                text(
                    "update document set live_version = :version where tenant_id = :tenant and id = :id "
                    "and deleted_at is null"
                ),
                named,
            )
        if not keep_old:
            for old in range(1, row.version):
                self.vectors.delete(tenant, document, old)
        return int(row.version)
