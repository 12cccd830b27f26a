"""Which documents wait for their index, and what happened to each: rows of `document_version` (role `system`).

`attempt` is also the fence: who took a version writes only while nobody took it after him.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from datetime import timedelta
from typing import Any, Final

from sqlalchemy import text
from sqlalchemy.ext.asyncio import AsyncConnection

MOST_TRIES: Final = 3
PAUSES: Final = (timedelta(seconds=10), timedelta(seconds=60), timedelta(seconds=300))
"""How long a version waits after its first, second, third try."""
SMALL: Final = 500_000
"""Bytes: small documents never wait behind large ones, they go in batches of their own."""
MOST: Final = 50
MOST_BYTES: Final = 8_000_000
_WORK: Final = "('queued', 'parsing', 'chunking', 'embedding', 'indexing')"

Key = tuple[str, str, int]
"""Tenant, document, version."""


@dataclass(frozen=True, slots=True)
class Waiting:
    """A version that is due. `waited`: seconds since it came to its state."""

    key: Key
    size: int
    attempt: int
    waited: float

    @property
    def large(self) -> bool:
        return self.size > SMALL


@dataclass(frozen=True, slots=True)
class Task:
    """A version in the hands of a run."""

    tenant: str
    document: str
    version: int
    attempt: int
    name: str
    media_type: str
    size: int
    sha256: str
    object_key: str
    object_version: str | None
    knowledge_base: str
    user: str
    live_version: int | None

    @property
    def key(self) -> Key:
        return self.tenant, self.document, self.version


def batch(waiting: Sequence[Waiting], *, last_large: bool) -> list[Waiting]:
    """What the next run takes, from versions in a fair order (tenants take turns).

    One size class a run, in turn where both wait. A version that was tried before goes alone: whatever
    ended its run must not end that of others again.
    """
    large = any(one.large for one in waiting) and (not last_large or all(one.large for one in waiting))
    found: list[Waiting] = []
    total = 0
    for one in waiting:
        if one.large is not large:
            continue
        if found and (len(found) >= MOST or total + one.size > MOST_BYTES or one.attempt > 0):
            continue
        found.append(one)
        total += one.size
        if one.attempt > 0:
            break
    return found


async def due(connection: AsyncConnection, *, limit: int = 500) -> list[Waiting]:
    """Versions whose time has come, tenants in turn, within each size class the longest waiting first."""
    rows = await connection.execute(
        text(
            f"""
            select tenant_id, document_id, version, coalesce(size, 0), attempt, extract(epoch from now() - stage_at)
            from (select *, row_number() over (partition by tenant_id, coalesce(size, 0) > :small
                                               order by attempt > 0, stage_at, document_id, version) as turn
                  from document_version
                  where state in {_WORK} and coalesce(next_attempt_at, '-infinity') <= now()) waiting
            order by turn, tenant_id limit :limit
            """
        ),
        {"small": SMALL, "limit": limit},
    )
    return [Waiting((row[0], row[1], row[2]), int(row[3]), row[4], float(row[5])) for row in rows]


async def take(connection: AsyncConnection, keys: Iterable[Key]) -> list[Task]:
    """Begin a try of each version; those that are deleted, overtaken or tried out end here, without one."""
    taken = []
    for key in keys:
        await connection.execute(text(_END_WITHOUT_TRY), _named(key) | {"most": MOST_TRIES})
        rows = await connection.execute(
            text(
                f"""
                update document_version set state = 'parsing', stage_at = now(), attempt = attempt + 1, reason = '',
                    next_attempt_at = now() + (cast(:pauses as interval[]))[attempt + 1]
                where {_THIS} and state in {_WORK} returning attempt
                """
            ),
            _named(key) | {"pauses": list(PAUSES)},
        )
        if rows.first() is not None:
            taken.append(key)
    return await tasks(connection, taken, "parsing")


async def tasks(connection: AsyncConnection, keys: Iterable[Key] | None, state: str) -> list[Task]:
    """Those of the versions that are in `state`, small ones first; all where `keys` is None."""
    wanted = None if keys is None else set(keys)
    rows = await connection.execute(
        text(
            """
            select v.tenant_id, v.document_id, v.version, v.attempt, d.name, v.media_type, coalesce(v.size, 0),
                   coalesce(v.sha256, ''), v.object_key, v.object_version, coalesce(d.knowledge_base_id, ''),
                   d.user_id, d.live_version
            from document_version v join document d on d.tenant_id = v.tenant_id and d.id = v.document_id
            where v.state = :state and d.deleted_at is null
              and (cast(:all as boolean) or v.document_id = any(cast(:documents as text[])))
            order by v.size, v.document_id, v.version limit 1000
            """
        ),
        {"state": state, "all": wanted is None, "documents": sorted({key[1] for key in wanted or ()})},
    )
    return [task for task in (Task(*row) for row in rows) if wanted is None or task.key in wanted]


async def advance(connection: AsyncConnection, task: Task, state: str, **columns: Any) -> bool:
    """Note how far a version is; False where it is no longer ours: cancelled, deleted, or taken again."""
    more = "".join(f", {name} = :{name}" for name in columns)
    rows = await connection.execute(
        text(
            f"""
            update document_version set state = :state, stage_at = now(){more}
            where {_THIS} and attempt = :attempt and state in {_WORK} returning 1
            """
        ),
        _named(task.key) | {"attempt": task.attempt, "state": state} | columns,
    )
    return rows.first() is not None


async def end(connection: AsyncConnection, task: Task, state: str, reason: str) -> bool:
    """The version has ended for good; see `advance`."""
    return await advance(connection, task, state, reason=reason, next_attempt_at=None)


async def again(connection: AsyncConnection, task: Task, reason: str) -> bool:
    """This try failed: another one later, or the end after the last; see `advance`."""
    if task.attempt >= MOST_TRIES:
        return await end(connection, task, "failed", f"{reason} ({task.attempt} tries)")
    rows = await connection.execute(
        text(
            f"""
            update document_version set state = 'queued', stage_at = now(), reason = :reason,
                next_attempt_at = now() + cast(:pause as interval)
            where {_THIS} and attempt = :attempt and state in {_WORK} returning 1
            """
        ),
        _named(task.key) | {"attempt": task.attempt, "reason": reason, "pause": PAUSES[task.attempt - 1]},
    )
    return rows.first() is not None


async def give_back(connection: AsyncConnection, keys: Iterable[Key], reason: str) -> None:
    """What the platform could not do is no try of the document: all that is not done waits a little."""
    for key in keys:
        await connection.execute(
            text(
                f"""
                update document_version set state = 'queued', stage_at = now(), reason = :reason,
                    attempt = greatest(attempt - 1, 0), next_attempt_at = now() + cast(:pause as interval)
                where {_THIS} and state in {_WORK} and state <> 'queued'
                """
            ),
            _named(key) | {"reason": reason, "pause": PAUSES[0]},
        )


async def publish(connection: AsyncConnection, task: Task, chunks: int) -> bool:
    """Make the version the visible one, in one transaction with its row; False where it is no longer ours."""
    if not await advance(connection, task, "indexed", chunks=chunks, reason="", next_attempt_at=None):
        return False
    rows = await connection.execute(
        text(
            """
            update document set live_version = :version
            where tenant_id = :tenant and id = :document and deleted_at is null
              and coalesce(live_version, 0) <= :version returning 1
            """
        ),
        _named(task.key),
    )
    return rows.first() is not None


async def abandoned(connection: AsyncConnection, task: Task) -> bool:
    """True where nobody will make this version visible: what was written of it must go."""
    rows = await connection.execute(
        text(
            f"""
            select exists (select 1 from document_version v join document d
                on d.tenant_id = v.tenant_id and d.id = v.document_id and d.deleted_at is null
            where v.tenant_id = :tenant and v.document_id = :document and v.version = :version
              and (d.live_version = v.version
                   or (v.state in {_WORK} and coalesce(d.live_version, 0) < v.version)))
            """
        ),
        _named(task.key),
    )
    return not rows.scalar_one()


async def replaced(connection: AsyncConnection, task: Task) -> list[int]:
    """Versions of the document whose chunks may still be in the index although another is visible."""
    rows = await connection.execute(
        text(
            f"""
            select v.version from document_version v join document d on d.tenant_id = v.tenant_id and d.id = v.document_id
            where v.tenant_id = :tenant and v.document_id = :document and v.chunks > 0
              and v.version < d.live_version and v.state not in {_WORK} order by 1
            """
        ),
        _named(task.key),
    )
    return [int(row[0]) for row in rows]


async def forget_chunks(connection: AsyncConnection, key: Key) -> None:
    """No chunk of the version is in the index any more."""
    await connection.execute(text(f"update document_version set chunks = 0 where {_THIS}"), _named(key))


_THIS: Final = "tenant_id = :tenant and document_id = :document and version = :version"
_END_WITHOUT_TRY: Final = f"""
    update document_version v set stage_at = now(), next_attempt_at = null,
        state = case when d.deleted_at is not null or d.live_version > v.version then 'cancelled' else 'failed' end,
        reason = case when d.deleted_at is not null then 'the document was deleted'
                      when d.live_version > v.version then 'version ' || d.live_version || ' is already visible'
                      else 'given up: the process that read it ended, ' || v.attempt || ' times' end
    from document d
    where d.tenant_id = v.tenant_id and d.id = v.document_id
      and v.tenant_id = :tenant and v.document_id = :document and v.version = :version and v.state in {_WORK}
      and (d.deleted_at is not null or d.live_version > v.version or v.attempt >= :most)
"""


def _named(key: Key) -> dict[str, Any]:
    return {"tenant": key[0], "document": key[1], "version": key[2]}
