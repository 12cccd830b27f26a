"""HTTP of providers; the agents service mounts it. `app.state.providers` is a `ProviderHandlers`."""

from typing import Annotated, Any

from fastapi import APIRouter, Depends, Request
from starlette.responses import Response

from services.agents.providers import schemas
from services.agents.providers.handlers import ProviderHandlers
from services.common.auth import Principal, require
from services.common.body import decode, documented, json_body, parse, read
from services.common.idempotency import RepeatableOf
from services.common.paging import PageQuery

router = APIRouter()


async def _handlers(request: Request) -> ProviderHandlers:
    found: ProviderHandlers = request.app.state.providers
    return found


HandlersOf = Annotated[ProviderHandlers, Depends(_handlers)]
Reader = Annotated[Principal, Depends(require("agents:read"))]
Writer = Annotated[Principal, Depends(require("agents:write"))]


@router.post(
    "/api/v1/providers",
    tags=["providers"],
    status_code=201,
    response_model=schemas.ProviderDocument,
    openapi_extra=documented(schemas.NewProvider),
)
async def create_provider(
    request: Request, handlers: HandlersOf, principal: Writer, repeatable: RepeatableOf
) -> Response:
    """Add a provider of your own: any OpenAI-compatible server, or Anthropic. Honours `Idempotency-Key`."""
    body = await read(request, max_bytes=schemas.MAX_BYTES)
    wanted = decode(parse(body), schemas.NewProvider)
    return await handlers.create(principal, wanted, repeatable(principal.subject, body))


@router.get("/api/v1/providers", tags=["providers"], response_model=schemas.ProviderList)
async def list_providers(handlers: HandlersOf, principal: Reader, page: PageQuery) -> dict[str, Any]:
    """Your providers without their keys, and the platform's by name."""
    return await handlers.page(principal, page)


@router.get("/api/v1/providers/{id}", tags=["providers"])
async def get_provider(handlers: HandlersOf, principal: Reader, id: str) -> schemas.ProviderDocument:
    """One of your providers, without its key."""
    return await handlers.get(principal, id)


@router.patch("/api/v1/providers/{id}", tags=["providers"], openapi_extra=documented(schemas.ProviderChange))
async def change_provider(
    handlers: HandlersOf,
    principal: Writer,
    id: str,
    body: Annotated[
        schemas.ProviderChange, Depends(json_body(schemas.ProviderChange, max_bytes=schemas.MAX_BYTES))
    ],
) -> schemas.ProviderDocument:
    """Change address, key, models or prices. Every instance uses the new key within two seconds."""
    return await handlers.change(principal, id, body)


@router.delete("/api/v1/providers/{id}", tags=["providers"], status_code=204)
async def delete_provider(handlers: HandlersOf, principal: Writer, id: str) -> None:
    """Delete a provider and its key; runs that name it fail or fall back."""
    await handlers.delete(principal, id)
