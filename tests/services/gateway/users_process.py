"""A users service as the gateway sees it: introspection, and an echo at `/api/v1/me`.

Keys say what they are: `sk_test_<tenant>_<requests per minute>_<anything>`. `POST /control/revoke` revokes one
in this process and tells nobody; the test publishes.
"""

from typing import Annotated, Any

import msgspec
from fastapi import APIRouter, Depends, FastAPI, Request

from core.settings import SecuritySettings
from services.common.app import service_app
from services.common.auth import Identity, Introspection, internal_key, require, require_system
from services.common.body import documented, json_body
from services.common.lifecycle import Lifecycle
from services.common.principal import Principal
from services.common.server import run


class Key(msgspec.Struct, forbid_unknown_fields=True):
    key: str


router = APIRouter()
_REVOKED: set[str] = set()
_ASKED: list[str] = []


@router.post("/internal/introspect")
async def introspect(
    body: Annotated[Key, Depends(json_body(Key))], _: Annotated[Principal, Depends(require_system)]
) -> dict[str, Any]:
    _ASKED.append(body.key)
    parts = body.key.split("_")
    if len(parts) != 5 or parts[1] != "test" or body.key in _REVOKED:
        return {"active": False}
    principal = Principal(
        tenant_id=f"org_{parts[2]}", subject=f"key_{parts[4]}", kind="api_key", scopes=frozenset({"org:read", "agents:read", "agents:write", "agents:run"}),
        plan="test", requests_per_minute=int(parts[3]), key_id=f"key_{parts[4]}",
    )  # fmt: skip
    answer: dict[str, Any] = msgspec.to_builtins(Introspection(active=True, principal=principal))
    return answer


@router.post("/control/revoke")
async def revoke(body: Annotated[Key, Depends(json_body(Key))]) -> dict[str, Any]:
    _REVOKED.add(body.key)
    return {}


@router.get("/control/asked")
async def asked() -> list[str]:
    return _ASKED


@router.get("/api/v1/me")
async def me(
    request: Request, principal: Annotated[Principal, Depends(require("org:read"))]
) -> dict[str, Any]:
    return {"tenant": principal.tenant_id, "subject": principal.subject, "headers": dict(request.headers)}


@router.post("/api/v1/auth/login", openapi_extra=documented(Key))
async def login(request: Request) -> dict[str, Any]:
    return {"headers": dict(request.headers)}


def create_app(lifecycle: Lifecycle) -> FastAPI:
    app = service_app("users", lifecycle, routers=[router])
    app.state.identity = Identity(internal_key(SecuritySettings()), None)
    return app


if __name__ == "__main__":
    run(create_app, "users", 8001)
