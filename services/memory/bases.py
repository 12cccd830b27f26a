"""Knowledge bases: folders of documents that are searched together."""

from typing import Any

from sqlalchemy.ext.asyncio import AsyncConnection
from starlette.responses import Response

from core import audit
from core.clock import now
from core.database import Database, tenant
from core.ids import new_id
from services.common.errors import Problem, not_found
from services.common.idempotency import Answer, Repeatable, once
from services.common.paging import Page, listing
from services.common.principal import Principal
from services.memory import schemas, store
from services.memory.documents import own_tenant
from services.memory.erase import Eraser


class Bases:
    def __init__(self, database: Database, eraser: Eraser) -> None:
        self._database, self._eraser = database, eraser

    async def create(self, principal: Principal, body: schemas.NewBase, repeatable: Repeatable) -> Response:
        """201 with the knowledge base. Raises: Problem 409 `slug_taken`."""
        with tenant(own_tenant(principal)):
            async with self._database.writer() as connection:
                return await once(connection, repeatable, lambda: self._create(connection, principal, body))

    async def _create(
        self, connection: AsyncConnection, principal: Principal, body: schemas.NewBase
    ) -> Answer:
        base = store.Base(new_id("kb"), body.slug, body.name, principal.subject, now())
        try:
            await store.insert_base(connection, principal.tenant_id, base)
        except store.SlugTakenError:
            raise Problem(
                409, "slug_taken", "Name taken", f"There is a knowledge base {body.slug!r} already."
            ) from None
        return Answer(201, schemas.shown_base(base))

    async def page(self, principal: Principal, page: Page) -> dict[str, Any]:
        with tenant(own_tenant(principal)):
            async with self._database.reader() as connection:
                found = await store.page_of_bases(connection, page)
        return listing([schemas.shown_base(one) for one in found], page)

    async def get(self, principal: Principal, base_id: str) -> schemas.KnowledgeBase:
        """Raises: Problem 404."""
        with tenant(own_tenant(principal)):
            async with self._database.reader() as connection:
                return schemas.shown_base(await _base(connection, base_id))

    async def rename(self, principal: Principal, base_id: str, name: str) -> schemas.KnowledgeBase:
        """Raises: Problem 404."""
        with tenant(own_tenant(principal)):
            async with self._database.writer() as connection:
                await _base(connection, base_id)
                await store.rename_base(connection, base_id, name)
                return schemas.shown_base(await _base(connection, base_id))

    async def delete(self, principal: Principal, base_id: str) -> None:
        """Delete it with all its documents. Raises: Problem 404."""
        with tenant(own_tenant(principal)):
            async with self._database.writer() as connection:
                if await store.base(connection, base_id, lock=True) is None:
                    raise not_found("knowledge base")
                documents = await store.delete_base(connection, base_id)
                await audit.record(
                    connection,
                    action="knowledge_base.delete",
                    actor=principal.subject,
                    tenant_id=principal.tenant_id,
                    target=base_id,
                    outcome="success",
                    detail={"documents": str(documents)},
                )
        self._eraser.wake()


async def _base(connection: AsyncConnection, base_id: str) -> store.Base:
    found = await store.base(connection, base_id)
    if found is None:
        raise not_found("knowledge base")
    return found
