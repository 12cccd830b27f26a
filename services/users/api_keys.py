"""API keys of an organisation: create, list, rotate, revoke.

Nobody gives more than they hold: a key's scopes are a subset of its creator's, and only who holds
all scopes of a key may rotate it, because rotation shows a new secret for them. Gateways hear of
every key that ends after the commit; one that misses it asks again when its cache entry ends.
"""

from collections.abc import Iterable
from datetime import UTC, datetime, timedelta
from typing import Any, Final

from redis.asyncio import Redis
from redis.exceptions import RedisError
from sqlalchemy.ext.asyncio import AsyncConnection
from starlette.responses import Response

from core import audit
from core.clock import now
from core.database import Database, tenant
from core.ids import new_id
from core.log import Logger
from services.common.errors import Problem, invalid, not_found
from services.common.idempotency import Answer, Repeatable, once
from services.common.paging import Page, listing
from services.common.principal import Principal
from services.common.revocations import Revoked, publish
from services.users import keys, schemas, store
from services.users.organizations import acting_in, window
from services.users.roles import unknown_scopes
from services.users.store import ApiKey

LATEST_EXPIRY: Final = datetime(2200, 1, 1, tzinfo=UTC)
_log: Final = Logger("users.keys")


class ApiKeys:
    def __init__(self, database: Database, cache: Redis) -> None:
        self._database = database
        self._cache = cache

    async def create(
        self, principal: Principal, organisation_id: str, body: schemas.NewApiKey, repeatable: Repeatable
    ) -> Response:
        """201 with the key; its secret is in no later answer.

        Raises:
            Problem: 403 `scope_not_held`, 404, 422 for unknown scopes or an expiry in the past.
        """
        with tenant(acting_in(principal, organisation_id)):
            async with self._database.writer() as connection:
                await _must_exist(connection, organisation_id)
                _check(principal, body)
                return await once(
                    connection, repeatable, lambda: _create(connection, principal, organisation_id, body)
                )

    async def page(self, principal: Principal, organisation_id: str, page: Page) -> dict[str, Any]:
        """Keys without their secrets, also those that ended. Raises: Problem 404."""
        with tenant(acting_in(principal, organisation_id)):
            async with self._database.reader() as connection:
                await _must_exist(connection, organisation_id)
                found = await store.page_of_keys(connection, organisation_id, window(page))
        return listing([schemas.api_key(one) for one in found], page)

    async def rotate(
        self,
        principal: Principal,
        organisation_id: str,
        key_id: str,
        body: schemas.Rotation,
        repeatable: Repeatable,
    ) -> Response:
        """201 with a new key of the same name, scopes and expiry; the old one ends after the overlap.

        Raises:
            Problem: 403 `scope_not_held`, 404, 409 `key_not_active`, 409 `key_already_rotated`.
        """
        with tenant(acting_in(principal, organisation_id)):
            async with self._database.writer() as connection:
                answer = await once(
                    connection,
                    repeatable,
                    lambda: _rotate(connection, principal, organisation_id, key_id, body),
                )
        await self._tell("key.rotated", organisation_id, key_id)
        return answer

    async def revoke(self, principal: Principal, organisation_id: str, key_id: str) -> None:
        """End the key now. Doing it again changes nothing and tells the gateways again. Raises: Problem 404."""
        with tenant(acting_in(principal, organisation_id)):
            async with self._database.writer() as connection:
                found = await store.lock_key(connection, organisation_id, key_id)
                if found is None:
                    raise not_found("key")
                if found.revoked_at is None:
                    await store.end_key(connection, organisation_id, key_id, at=now())
                    await audit.record(
                        connection,
                        action="api_key.revoke",
                        actor=principal.subject,
                        tenant_id=organisation_id,
                        target=key_id,
                        outcome="success",
                    )
        await self._tell("key.revoked", organisation_id, key_id)

    async def _tell(self, event: str, organisation_id: str, key_id: str) -> None:
        try:
            await publish(self._cache, Revoked(event, key_id=key_id, tenant_id=organisation_id))
        except (RedisError, OSError) as error:
            # Gateways that lost Redis as well no longer trust what they remember.
            _log.warn("revocation not published", key=key_id, error=type(error).__name__)


async def _create(
    connection: AsyncConnection, principal: Principal, organisation_id: str, body: schemas.NewApiKey
) -> Answer:
    key = keys.generate()
    created = await store.insert_key(
        connection,
        tenant_id=organisation_id,
        key_id=new_id("key"),
        public_id=key.public_id,
        name=body.name,
        key_sha256=key.sha256,
        scopes=tuple(sorted(set(body.scopes))),
        created_by=principal.subject,
        expires_at=body.expires_at,
    )
    await audit.record(
        connection,
        action="api_key.create",
        actor=principal.subject,
        tenant_id=organisation_id,
        target=created.id,
        outcome="success",
        detail=_scopes(created),
    )
    return _shown_once(created, key)


async def _rotate(
    connection: AsyncConnection,
    principal: Principal,
    organisation_id: str,
    key_id: str,
    body: schemas.Rotation,
) -> Answer:
    old = await store.lock_key(connection, organisation_id, key_id)
    if old is None:
        raise not_found("key")
    instant = now()
    if (state := old.state(instant)) != "active":
        raise Problem(
            409,
            "key_not_active",
            "Key not active",
            f"The key is {state}; create a new one instead of rotating it.",
        )
    if old.rotated_to is not None:
        raise Problem(
            409,
            "key_already_rotated",
            "Key already rotated",
            f"It was rotated to {old.rotated_to}; rotate that one.",
        )
    _must_hold(principal, old.scopes)
    key = keys.generate()
    created = await store.insert_key(
        connection,
        tenant_id=organisation_id,
        key_id=new_id("key"),
        public_id=key.public_id,
        name=old.name,
        key_sha256=key.sha256,
        scopes=old.scopes,
        created_by=principal.subject,
        expires_at=old.expires_at,
    )
    if body.overlap_seconds:
        until = instant + timedelta(seconds=body.overlap_seconds)
        await store.expire_key(connection, organisation_id, key_id, at=until, rotated_to=created.id)
    else:
        await store.end_key(connection, organisation_id, key_id, at=instant, rotated_to=created.id)
    await audit.record(
        connection,
        action="api_key.rotate",
        actor=principal.subject,
        tenant_id=organisation_id,
        target=key_id,
        outcome="success",
        detail={"to": created.id, "overlap_seconds": str(body.overlap_seconds)},
    )
    return _shown_once(created, key)


def _shown_once(created: ApiKey, key: keys.NewKey) -> Answer:
    """The answer with the secret, and what a repetition gets instead: the secret is stored nowhere."""
    return Answer(
        201,
        {**schemas.api_key(created), "key": key.text},
        on_repeat=Problem(
            409,
            "key_shown_already",
            "The key was shown already",
            f"This request made {created.id}, and a key is shown only once. Rotate it to get a new secret.",
        ),
    )


def _check(principal: Principal, body: schemas.NewApiKey) -> None:
    if unknown := unknown_scopes(body.scopes):
        raise invalid("/scopes", f"Unknown: {', '.join(unknown)[:200]}.", code="unknown_scope")
    _must_hold(principal, body.scopes)
    if body.expires_at is not None and not now() < body.expires_at < LATEST_EXPIRY:
        raise invalid("/expires_at", f"It must lie in the future and before {LATEST_EXPIRY.year}.")


def _must_hold(principal: Principal, scopes: Iterable[str]) -> None:
    if missing := sorted(set(scopes) - principal.scopes):
        raise Problem(
            403,
            "scope_not_held",
            "Not allowed",
            f"You do not hold {', '.join(missing)} yourself, so you cannot give a key that does.",
        )


def _scopes(key: ApiKey) -> dict[str, str]:
    return {"scopes": ",".join(key.scopes)}


async def _must_exist(connection: AsyncConnection, organisation_id: str) -> None:
    if await store.organisation(connection, organisation_id) is None:
        raise not_found("organisation")
