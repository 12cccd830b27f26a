"""A tenant's own providers: create, list, change, delete. Keys go in and never come out."""

from typing import Any

from sqlalchemy.ext.asyncio import AsyncConnection
from starlette.responses import Response

from core import audit
from core.database import Database, tenant
from core.ids import new_id
from services.agents.providers import schemas, store
from services.agents.providers.egress import EgressError
from services.agents.providers.registry import Providers
from services.common.errors import Problem, invalid, not_found
from services.common.idempotency import Answer, Repeatable, once
from services.common.paging import Page, listing
from services.common.principal import Principal


class ProviderHandlers:
    def __init__(self, database: Database, providers: Providers) -> None:
        self._database = database
        self._providers = providers

    async def create(
        self, principal: Principal, body: schemas.NewProvider, repeatable: Repeatable
    ) -> Response:
        """201. Raises: Problem 409 `name_taken`, 422 for an address that is refused."""
        tenant_id = _tenant_of(principal)
        await self._check_url(body.base_url)
        if body.name in self._providers.platform:
            raise _taken(body.name)
        with tenant(tenant_id):
            async with self._database.writer() as connection:
                answer = await once(connection, repeatable, lambda: self._create(connection, principal, body))
        self._providers.forget(tenant_id)
        return answer

    async def page(self, principal: Principal, page: Page) -> dict[str, Any]:
        """The tenant's providers, and the names of the platform's."""
        with tenant(_tenant_of(principal)):
            async with self._database.reader() as connection:
                found = await store.page(
                    connection, page.fetch, page.after, page.before, newest_first=page.order == "desc"
                )
        documents = [dict(schemas.document(one)) for one in found]
        return {
            **listing(documents, page),
            "platform": [schemas.platform(one) for one in self._providers.platform.values()],
        }

    async def get(self, principal: Principal, provider_id: str) -> schemas.ProviderDocument:
        """Raises: Problem 404."""
        with tenant(_tenant_of(principal)):
            async with self._database.reader() as connection:
                found = await store.find(connection, provider_id)
        if found is None:
            raise not_found("provider")
        return schemas.document(found)

    async def change(
        self, principal: Principal, provider_id: str, body: schemas.ProviderChange
    ) -> schemas.ProviderDocument:
        """Raises: Problem 404, 422 for an address that is refused or that comes without its key."""
        tenant_id = _tenant_of(principal)
        if body.base_url is not None:
            if body.api_key is None:
                raise invalid(
                    "/api_key", "Send the key with a new base_url; the stored one is sent nowhere new."
                )
            await self._check_url(body.base_url)
        with tenant(tenant_id):
            async with self._database.writer() as connection:
                old = await store.find(connection, provider_id, lock=True)
                if old is None:
                    raise not_found("provider")
                values = {
                    "base_url": old.base_url if body.base_url is None else body.base_url.rstrip("/"),
                    "api_key": old.api_key
                    if body.api_key is None
                    else self._sealed(tenant_id, old.id, body.api_key),
                    "models": list(old.models if body.models is None else body.models),
                    "prices": old.prices if body.prices is None else schemas.stored_prices(body.prices),
                }
                changed = await store.update(connection, provider_id, values)
                fields = ",".join(
                    name
                    for name in ("base_url", "api_key", "models", "prices")
                    if getattr(body, name) is not None
                )
                await _record(
                    connection, "provider.change", principal, provider_id, {"fields": fields or "none"}
                )
        self._providers.forget(tenant_id)
        return schemas.document(changed)

    async def delete(self, principal: Principal, provider_id: str) -> None:
        """Raises: Problem 404."""
        tenant_id = _tenant_of(principal)
        with tenant(tenant_id):
            async with self._database.writer() as connection:
                if not await store.delete(connection, provider_id):
                    raise not_found("provider")
                await _record(connection, "provider.delete", principal, provider_id, {})
        self._providers.forget(tenant_id)

    async def _create(
        self, connection: AsyncConnection, principal: Principal, body: schemas.NewProvider
    ) -> Answer:
        provider_id = new_id("prv")
        values = {
            "id": provider_id,
            "name": body.name,
            "kind": body.kind,
            "base_url": body.base_url.rstrip("/"),
            "api_key": self._sealed(principal.tenant_id, provider_id, body.api_key),
            "models": list(body.models),
            "prices": schemas.stored_prices(body.prices),
            "created_by": principal.subject,
        }
        try:
            created = await store.insert(connection, principal.tenant_id, values)
        except store.NameTakenError:
            raise _taken(body.name) from None
        await _record(
            connection, "provider.create", principal, provider_id, {"kind": body.kind, "name": body.name}
        )
        return Answer(201, schemas.document(created))

    def _sealed(self, tenant_id: str, provider_id: str, key: str) -> bytes:
        return self._providers.cipher.encrypt(key.encode(), self._providers.place(tenant_id, provider_id))

    async def _check_url(self, url: str) -> None:
        try:
            await self._providers.egress.check_url(url)
        except EgressError as error:
            raise invalid("/base_url", f"The address is refused: {error}.", code="address_refused") from None


async def _record(
    connection: AsyncConnection, action: str, principal: Principal, provider_id: str, detail: dict[str, str]
) -> None:
    await audit.record(
        connection,
        action=action,
        actor=principal.subject,
        tenant_id=principal.tenant_id,
        target=provider_id,
        outcome="success",
        detail=detail,
    )


def _tenant_of(principal: Principal) -> str:
    if not principal.tenant_id:
        raise Problem(
            422, "tenant_required", "Which organisation?", "You belong to no organisation; use a key of one."
        )
    return principal.tenant_id


def _taken(name: str) -> Problem:
    return Problem(
        409,
        "name_taken",
        "Name taken",
        f"There is a provider {name} already; change it or choose another name.",
    )
