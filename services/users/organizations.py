"""Organisations: made by the owner of the platform, read by those who belong to them."""

import re
import secrets
from typing import Any

import msgspec
from sqlalchemy.ext.asyncio import AsyncConnection
from starlette.responses import Response

from core import audit
from core.database import Database, current_tenant, tenant
from core.ids import new_id
from services.common.errors import Problem, invalid, not_found
from services.common.idempotency import Answer, Repeatable, once
from services.common.paging import Page, listing
from services.common.principal import Principal
from services.users import schemas, store
from services.users.store import NOBODY, Window


def acting_in(principal: Principal, organisation_id: str) -> str:
    """The tenant whose rows the caller may see when it names `organisation_id`.

    Its own, whatever it names: a foreign id then has no row. The owner of the platform goes where
    it says.
    """
    return organisation_id if principal.platform_owner else principal.tenant_id or NOBODY


def window(page: Page) -> Window:
    """The rows behind a page of the API, and one more that tells whether there are more."""
    newest_first = page.order == "desc"
    above, below = (page.before, page.after) if newest_first else (page.after, page.before)
    return Window(page.fetch, above or None, below or None, newest_first)


def free_slug(name: str) -> str:
    """A slug that nobody has, by chance of 40 random bits: saying "taken" would tell who is here."""
    readable = re.sub(r"[^a-z0-9]+", "-", name.lower()).strip("-")[:40].strip("-")
    return f"{readable or 'org'}-{secrets.token_hex(5)}"


class Organisations:
    def __init__(self, database: Database) -> None:
        self._database = database

    async def create(
        self, principal: Principal, body: schemas.NewOrganization, repeatable: Repeatable
    ) -> Response:
        """201 with the organisation.

        Raises:
            Problem: 403 `platform_owner_required`, 409 `slug_taken`, 422 `unknown_plan`.
        """
        if not principal.platform_owner:
            raise Problem(
                403,
                "platform_owner_required",
                "Not allowed",
                "Only the owner of the platform makes organisations.",
            )
        with tenant(principal.tenant_id or NOBODY):
            async with self._database.writer() as connection:
                return await once(connection, repeatable, lambda: self._create(connection, principal, body))

    async def page(self, principal: Principal, page: Page, slug: str | None) -> dict[str, Any]:
        """Those the caller belongs to; all, for the owner of the platform."""
        if principal.kind == "user":
            person_id = None if principal.platform_owner else principal.subject
            with tenant(NOBODY):
                async with self._database.reader() as connection:
                    found = await store.page_of_organisations(
                        connection, window(page), person_id=person_id, slug=slug
                    )
        else:
            own = await self._find(principal, principal.tenant_id)
            found = [own] if own is not None and slug in (None, own.slug) else []
        return listing([schemas.organization(one) for one in found], page)

    async def get(self, principal: Principal, organisation_id: str) -> schemas.Organization:
        """Raises: Problem 404."""
        found = await self._find(principal, organisation_id)
        if found is None:
            raise not_found("organisation")
        return schemas.organization(found)

    async def _find(self, principal: Principal, organisation_id: str) -> store.Organisation | None:
        with tenant(acting_in(principal, organisation_id)):
            async with self._database.reader() as connection:
                return await store.organisation(connection, organisation_id)

    async def _create(
        self, connection: AsyncConnection, principal: Principal, body: schemas.NewOrganization
    ) -> Answer:
        organisation_id = new_id("org")
        await store.go_on_inside(connection, organisation_id)
        try:
            created = await store.create_organisation(
                connection, organisation_id, body.slug, body.name, body.plan
            )
        except store.SlugTakenError:
            raise Problem(
                409,
                "slug_taken",
                "Slug taken",
                f"There is an organisation {body.slug} already; choose another slug.",
            ) from None
        except store.UnknownPlanError:
            raise invalid("/plan", "There is no such plan.", code="unknown_plan") from None
        await audit.record(
            connection,
            action="organization.create",
            actor=principal.subject,
            tenant_id=organisation_id,
            target=organisation_id,
            outcome="success",
            detail={"plan": created.plan},
        )
        await store.go_on_inside(connection, current_tenant())
        return Answer(201, schemas.organization(created))


def fingerprint(body: msgspec.Struct) -> bytes:
    """What was asked for, the same for every way to write the JSON."""
    return msgspec.json.encode(body, order="deterministic")
