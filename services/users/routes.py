"""HTTP of the users service."""

from typing import Annotated, Any, Final

import msgspec
from fastapi import APIRouter, Depends, Path, Query
from starlette.responses import Response

from services.common.auth import require, require_system
from services.common.body import documented, json_body
from services.common.idempotency import RepeatableOf
from services.common.paging import PageQuery
from services.common.principal import Principal
from services.users import schemas
from services.users.organizations import fingerprint
from services.users.parts import OrganizationId, UsersOf, known_shape

router = APIRouter()

KEY_SET_SECONDS: Final = 300


async def _key_id(key_id: Annotated[str, Path(description="`key_…`")]) -> str:
    return known_shape("key", key_id)


KeyId = Annotated[str, Depends(_key_id)]
Slug = Annotated[str | None, Query(pattern=schemas.SLUG, description="Only the one with this slug.")]


@router.get("/.well-known/jwks.json", tags=["auth"])
async def key_set(users: UsersOf, response: Response) -> dict[str, Any]:
    """The keys that verify access tokens (RFC 7517)."""
    response.headers["cache-control"] = f"public, max-age={KEY_SET_SECONDS}"
    return users.tokens.key_set()


@router.get("/api/v1/me", tags=["auth"])
async def me(users: UsersOf, principal: Annotated[Principal, Depends(require())]) -> schemas.Me:
    """Who you are, where you belong, what you may do."""
    return await users.identities.me(principal)


@router.post(
    "/internal/introspect",
    tags=["internal"],
    dependencies=[Depends(require_system)],
    openapi_extra=documented(schemas.Introspection),
)
async def introspect(
    users: UsersOf, body: Annotated[schemas.Introspection, Depends(json_body(schemas.Introspection))]
) -> Response:
    """Whose API key this is; for other parts of the platform only."""
    found = await users.identities.introspect(body.key)
    return Response(msgspec.json.encode(found), media_type="application/json")


@router.post(
    "/api/v1/organizations",
    tags=["organizations"],
    status_code=201,
    response_model=schemas.Organization,
    openapi_extra=documented(schemas.NewOrganization),
)
async def create_organization(
    users: UsersOf,
    repeatable_of: RepeatableOf,
    principal: Annotated[Principal, Depends(require("org:admin"))],
    body: Annotated[schemas.NewOrganization, Depends(json_body(schemas.NewOrganization))],
) -> Response:
    """Make an organisation (a tenant). For the owner of the platform. Honours `Idempotency-Key`."""
    return await users.organizations.create(
        principal, body, repeatable_of(principal.subject, fingerprint(body))
    )


@router.get("/api/v1/organizations", tags=["organizations"], response_model=schemas.Organizations)
async def list_organizations(
    users: UsersOf,
    principal: Annotated[Principal, Depends(require("org:read"))],
    page: PageQuery,
    slug: Slug = None,
) -> dict[str, Any]:
    """The organisations you belong to; all of them, for the owner of the platform."""
    return await users.organizations.page(principal, page, slug)


@router.get("/api/v1/organizations/{id}", tags=["organizations"])
async def get_organization(
    users: UsersOf,
    principal: Annotated[Principal, Depends(require("org:read"))],
    organization_id: OrganizationId,
) -> schemas.Organization:
    """One organisation with its plan and what the plan allows."""
    return await users.organizations.get(principal, organization_id)


@router.post(
    "/api/v1/organizations/{id}/keys",
    tags=["keys"],
    status_code=201,
    response_model=schemas.ApiKeyCreated,
    openapi_extra=documented(schemas.NewApiKey),
)
async def create_key(
    users: UsersOf,
    repeatable_of: RepeatableOf,
    principal: Annotated[Principal, Depends(require("keys:write"))],
    organization_id: OrganizationId,
    body: Annotated[schemas.NewApiKey, Depends(json_body(schemas.NewApiKey))],
) -> Response:
    """Make an API key. `key` is shown here and never again.

    With `Idempotency-Key` a repetition makes no second key; it is answered 409 `key_shown_already`
    with the id of the first, because the secret is stored nowhere.
    """
    return await users.api_keys.create(
        principal, organization_id, body, repeatable_of(principal.subject, fingerprint(body))
    )


@router.get("/api/v1/organizations/{id}/keys", tags=["keys"], response_model=schemas.ApiKeys)
async def list_keys(
    users: UsersOf,
    principal: Annotated[Principal, Depends(require("keys:read"))],
    organization_id: OrganizationId,
    page: PageQuery,
) -> dict[str, Any]:
    """API keys without their secrets, also those that ended."""
    return await users.api_keys.page(principal, organization_id, page)


@router.post(
    "/api/v1/organizations/{id}/keys/{key_id}/rotate",
    tags=["keys"],
    status_code=201,
    response_model=schemas.ApiKeyCreated,
    openapi_extra=documented(schemas.Rotation),
)
async def rotate_key(
    users: UsersOf,
    repeatable_of: RepeatableOf,
    *,
    principal: Annotated[Principal, Depends(require("keys:write"))],
    organization_id: OrganizationId,
    key_id: KeyId,
    body: Annotated[schemas.Rotation, Depends(json_body(schemas.Rotation))],
) -> Response:
    """Replace a key. The old one ends at once, or `overlap_seconds` later."""
    return await users.api_keys.rotate(
        principal, organization_id, key_id, body, repeatable_of(principal.subject, fingerprint(body))
    )


@router.delete("/api/v1/organizations/{id}/keys/{key_id}", tags=["keys"], status_code=204)
async def revoke_key(
    users: UsersOf,
    principal: Annotated[Principal, Depends(require("keys:write"))],
    organization_id: OrganizationId,
    key_id: KeyId,
) -> Response:
    """End a key now. Gateways refuse it within 2 seconds."""
    await users.api_keys.revoke(principal, organization_id, key_id)
    return Response(status_code=204)
