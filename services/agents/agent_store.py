"""SQL of agents and their versions, on the caller's transaction (role `app`)."""

from dataclasses import asdict, dataclass
from datetime import datetime
from typing import Any, Final

from sqlalchemy import Row, text
from sqlalchemy.exc import IntegrityError
from sqlalchemy.ext.asyncio import AsyncConnection

from core.database import current_tenant
from services.agents.model import AgentSpec
from services.agents.store import WINDOW, Window, one, spec_of


class SlugTakenError(Exception):
    """Another agent of the organisation has this slug."""


@dataclass(frozen=True, slots=True)
class Agent:
    id: str
    slug: str
    name: str
    description: str
    revision: int
    latest_version: int
    published_version: int | None
    created_by: str
    created_at: datetime
    updated_at: datetime
    spec: AgentSpec
    """Of the latest version."""
    published: AgentSpec | None
    """Of the version that runs use."""


@dataclass(frozen=True, slots=True)
class Version:
    version: int
    spec: AgentSpec
    created_by: str
    created_at: datetime


_AGENT: Final = """
    select a.id, a.slug, a.name, a.description, a.revision, a.latest_version, a.published_version, a.created_by,
           a.created_at, a.updated_at, v.spec::text as spec, p.spec::text as published
    from agent a
    join agent_version v on v.tenant_id = a.tenant_id and v.agent_id = a.id and v.version = a.latest_version
    left join agent_version p on p.tenant_id = a.tenant_id and p.agent_id = a.id and p.version = a.published_version
"""


async def insert_agent(
    connection: AsyncConnection,
    *,
    agent_id: str,
    slug: str,
    name: str,
    description: str,
    spec: AgentSpec,
    publish: bool,
    by: str,
) -> Agent:
    """With its version 1. Raises: SlugTakenError (the transaction is then lost)."""
    try:
        await connection.execute(
            text(
                "insert into agent (tenant_id, id, slug, name, description, published_version, created_by)"
                " values (current_tenant(), :id, :slug, :name, :description, :published, :by)"
            ),
            {
                "id": agent_id,
                "slug": slug,
                "name": name,
                "description": description,
                "published": 1 if publish else None,
                "by": by,
            },
        )
    except IntegrityError as error:
        raise _slug_taken(error, slug) from None
    await _insert_version(connection, agent_id, 1, spec, by)
    created = await agent(connection, agent_id)
    assert created is not None, "inserted in this transaction"
    return created


async def agent(connection: AsyncConnection, id_or_slug: str, *, lock: bool = False) -> Agent | None:
    """One agent; `lock`ed until the end of the transaction for a change."""
    key = "a.id" if id_or_slug.startswith("agt_") else "a.slug"
    row = await one(
        connection, f"{_AGENT} where {key} = :key{' for update of a' if lock else ''}", key=id_or_slug
    )
    return None if row is None else _agent(row)


async def agents(connection: AsyncConnection, window: Window) -> list[Agent]:
    sql = f"{_AGENT} where a.tenant_id = current_tenant() {WINDOW.format(id='a.id')}"
    rows = await connection.execute(text(sql), asdict(window))
    return [_agent(row) for row in rows]


async def change_agent(
    connection: AsyncConnection,
    found: Agent,
    *,
    slug: str,
    name: str,
    description: str,
    spec: AgentSpec,
    publish: int | None,
    by: str,
) -> Agent:
    """Change a locked agent; a new version where `spec` differs. `publish` is the version that runs use
    from now on, 0 for the one made here, None to leave it.

    Raises: SlugTakenError (the transaction is then lost).
    """
    version = found.latest_version
    if spec != found.spec:
        version += 1
        await _insert_version(connection, found.id, version, spec, by)
    published = found.published_version if publish is None else publish or version
    try:
        await connection.execute(
            text(
                "update agent set slug = :slug, name = :name, description = :description, latest_version = :latest,"
                " published_version = :published, revision = revision + 1, updated_at = clock_timestamp()"
                " where id = :id"
            ),
            {
                "slug": slug,
                "name": name,
                "description": description,
                "latest": version,
                "published": published,
                "id": found.id,
            },
        )
    except IntegrityError as error:
        raise _slug_taken(error, slug) from None
    changed = await agent(connection, found.id)
    assert changed is not None, "locked by this transaction"
    return changed


async def delete_agent(connection: AsyncConnection, agent_id: str) -> None:
    """With all versions. Conversations and open runs keep what they need."""
    await connection.execute(text("delete from agent where id = :id"), {"id": agent_id})


async def versions(
    connection: AsyncConnection, agent_id: str, limit: int, below: int | None
) -> list[Version]:
    """Newest first."""
    rows = await connection.execute(
        text(
            "select version, spec::text as spec, created_by, created_at from agent_version where agent_id = :id"
            " and (cast(:below as int) is null or version < :below) order by version desc limit :limit"
        ),
        {"id": agent_id, "below": below, "limit": limit},
    )
    return [_version(row) for row in rows]


async def version(connection: AsyncConnection, agent_id: str, number: int) -> Version | None:
    row = await one(
        connection,
        "select version, spec::text as spec, created_by, created_at from agent_version"
        " where agent_id = :id and version = :number",
        id=agent_id,
        number=number,
    )
    return None if row is None else _version(row)


async def _insert_version(
    connection: AsyncConnection, agent_id: str, number: int, spec: AgentSpec, by: str
) -> None:
    await connection.execute(
        text(
            "insert into agent_version (tenant_id, agent_id, version, spec, created_by)"
            " values (:tenant, :agent, :version, cast(:spec as jsonb), :by)"
        ),
        {"tenant": current_tenant(), "agent": agent_id, "version": number, "spec": spec.stored(), "by": by},
    )


def _slug_taken(error: IntegrityError, slug: str) -> Exception:
    return SlugTakenError(slug) if "agent_tenant_id_slug_key" in str(error.orig) else error


def _agent(row: Row[Any]) -> Agent:
    published = None if row.published is None else spec_of(row.published)
    return Agent(**{**row._mapping, "spec": spec_of(row.spec), "published": published})


def _version(row: Row[Any]) -> Version:
    return Version(**{**row._mapping, "spec": spec_of(row.spec)})
