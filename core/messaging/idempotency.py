"""`Idempotency-Key`: a client may repeat a request it got no answer to, and it takes effect once.

    async with database.writer() as connection:
        claim = await begin(connection, scope="key_… POST /api/v1/usage/events", key=key, request=body)
        if isinstance(claim, Replay):
            return claim.status, claim.body
        …effects in the same transaction…
        await claim.finish(connection, 200, answer)

Answer and effect commit together, so a request that died half-way has left nothing and may simply be
sent again; no entry can stay "in progress".
"""

import hashlib
from dataclasses import dataclass
from datetime import timedelta
from typing import Final

from sqlalchemy import text
from sqlalchemy.ext.asyncio import AsyncConnection

from core.database.tenancy import current_tenant

KEEP: Final = timedelta(hours=24)
MAX_KEY: Final = 255


_FIND = text(
    """
    with outdated as (
        delete from idempotency_key where tenant_id = :tenant_id and scope = :scope and key_sha256 = :key
        and created_at < now() - cast(:keep as interval)
    )
    select request_sha256, status, body from idempotency_key
    where tenant_id = :tenant_id and scope = :scope and key_sha256 = :key
    and created_at >= now() - cast(:keep as interval)
    """
)


class IdempotencyError(Exception):
    """The key cannot be used for this request; `code` is stable, `status` what HTTP says."""

    code = "idempotency_key_invalid"
    status = 400


class KeyReusedError(IdempotencyError):
    """The key came before with another request."""

    code = "idempotency_key_reused"
    status = 422


class InProgressError(IdempotencyError):
    """The first request with this key has not ended yet."""

    code = "idempotency_in_progress"
    status = 409


@dataclass(frozen=True, slots=True)
class Replay:
    """The first request's answer."""

    status: int
    body: bytes


@dataclass(frozen=True, slots=True)
class Claim:
    """The right to do the work; holds until the transaction ends."""

    tenant_id: str
    scope: str
    key_sha256: bytes
    request_sha256: bytes

    async def finish(self, connection: AsyncConnection, status: int, body: bytes) -> None:
        """Store the answer, in the transaction of the effect.

        Answers of 500 and above are not stored: the transaction should roll back instead. An
        answer that shows a secret once must not come here at all.
        """
        await connection.execute(
            text(
                """
                insert into idempotency_key (tenant_id, scope, key_sha256, request_sha256, status, body)
                values (:tenant_id, :scope, :key, :request, :status, :body)
                """
            ),
            {
                "tenant_id": self.tenant_id,
                "scope": self.scope,
                "key": self.key_sha256,
                "request": self.request_sha256,
                "status": status,
                "body": body,
            },
        )


async def begin(connection: AsyncConnection, *, scope: str, key: str, request: bytes) -> Claim | Replay:
    """Claim the key for this request, or get the answer of 24 hours ago (role `app`, current tenant).

    Args:
        scope: caller and route, for example `"<key id> POST /api/v1/usage/events"`.
        key: the header's value, 1 to 255 printable ASCII characters.
        request: what makes two requests the same; the body's bytes.

    Raises:
        IdempotencyError: the key is empty, too long or not printable ASCII.
        KeyReusedError: the key came before with another request.
        InProgressError: a request with this key is running now.
    """
    if not 1 <= len(key) <= MAX_KEY or not key.isascii() or not key.isprintable():
        raise IdempotencyError(f"Idempotency-Key must have 1 to {MAX_KEY} printable ASCII characters")
    claim = Claim(
        current_tenant(), scope, hashlib.sha256(key.encode()).digest(), hashlib.sha256(request).digest()
    )
    parameters = {"tenant_id": claim.tenant_id, "scope": scope, "key": claim.key_sha256}
    locked = await connection.scalar(
        text("select pg_try_advisory_xact_lock(:lock)"), {"lock": _lock_id(claim)}
    )
    if not locked:
        raise InProgressError("a request with this Idempotency-Key is running; ask again in a moment")
    row = (await connection.execute(_FIND, parameters | {"keep": KEEP})).one_or_none()
    if row is None:
        return claim
    if bytes(row[0]) != claim.request_sha256:
        raise KeyReusedError("this Idempotency-Key came before with another request; use a fresh one")
    return Replay(int(row[1]), bytes(row[2]))


async def forget_old(connection: AsyncConnection, keep: timedelta = KEEP) -> int:
    """Delete answers older than `keep`; returns how many (role `system`)."""
    result = await connection.execute(
        text("delete from idempotency_key where created_at < now() - cast(:keep as interval)"), {"keep": keep}
    )
    return result.rowcount


def _lock_id(claim: Claim) -> int:
    """64 bits for PostgreSQL's advisory lock of this tenant, scope and key."""
    parts = (claim.tenant_id.encode(), claim.scope.encode(), claim.key_sha256)
    digest = hashlib.sha256(b"".join(len(part).to_bytes(4) + part for part in parts)).digest()
    return int.from_bytes(digest[:8], signed=True)
