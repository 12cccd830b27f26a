"""The frame of every FastAPI service: health, metrics, reference, errors, traces.

def create_app(lifecycle: Lifecycle) -> FastAPI:
    return service_app("billing", lifecycle, routers=[router], lifespan=lifespan)

if __name__ == "__main__":
    run(create_app, "billing", 8005)
"""

import asyncio
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from importlib.metadata import version
from typing import Any, Final

from fastapi import APIRouter, Depends, FastAPI
from fastapi.openapi.utils import get_openapi
from prometheus_client import CONTENT_TYPE_LATEST, generate_latest
from starlette.middleware import Middleware
from starlette.responses import HTMLResponse, JSONResponse, Response

from core import asyncapi
from core.telemetry import ASYNCIO_TASKS
from services.common import docs_page, errors
from services.common.lifecycle import Lifecycle
from services.common.observe import Observe
from services.common.parameters import refuse_unknown

Lifespan = Callable[[FastAPI], AbstractAsyncContextManager[None]]

PROBLEM_SCHEMA: Final[dict[str, Any]] = {
    "title": "Problem",
    "description": "RFC 9457 problem details. `code` is stable.",
    "type": "object",
    "required": ["type", "title", "status", "detail", "code"],
    "properties": {
        "type": {"type": "string"},
        "title": {"type": "string"},
        "status": {"type": "integer"},
        "detail": {"type": "string"},
        "code": {"type": "string"},
        "instance": {"type": "string"},
        "errors": {
            "type": "array",
            "items": {
                "type": "object",
                "properties": {"path": {"type": "string"}, "message": {"type": "string"}},
            },
        },
    },
}
_PROBLEM_ANSWER: Final[dict[str, Any]] = {
    "description": "Anything else",
    "content": {errors.MEDIA_TYPE: {"schema": {"$ref": "#/components/schemas/Problem"}}},
}


@asynccontextmanager
async def _no_lifespan(_: FastAPI) -> AsyncIterator[None]:
    yield


def service_app(
    name: str,
    lifecycle: Lifecycle,
    *,
    routers: Sequence[APIRouter],
    lifespan: Lifespan = _no_lifespan,
    description: str = "",
) -> FastAPI:
    """An app with `/healthz`, `/readyz`, `/metrics`, `/openapi.json`, `/docs` and the routers, and
    `/asyncapi.json` where the service sends or receives messages.

    Args:
        lifecycle: the lifespan adds its dependencies to `lifecycle.checks`.
        lifespan: opens what handlers need and puts it on `app.state`
            (`app.state.identity` for `services.common.auth.require`).
    """
    app = FastAPI(
        title=f"Headrace {name}",
        version=version("headrace"),
        description=description,
        docs_url=None,
        redoc_url=None,
        openapi_url=None,
        lifespan=lifespan,
        redirect_slashes=False,
        dependencies=[Depends(refuse_unknown)],
        middleware=[Middleware(Observe, service=name)],
        # `Observe` measures and traces; spans of FastAPI's own for each step cost a tenth of a request.
        telemetry={"tracing": False, "metrics": False, "logs": False, "operation_spans": False},
    )
    app.state.lifecycle = lifecycle
    errors.install(app)
    for router in routers:
        app.include_router(router)
    app.include_router(_own_routes(name, app, lifecycle))
    app.openapi = lambda: _document(app)  # type: ignore[method-assign]
    return app


def _own_routes(name: str, app: FastAPI, lifecycle: Lifecycle) -> APIRouter:
    router = APIRouter(include_in_schema=False)

    @router.get("/healthz")
    async def healthz() -> JSONResponse:
        return JSONResponse({"status": "alive"})

    @router.get("/readyz")
    async def readyz() -> JSONResponse:
        ready, document = await lifecycle.readiness()
        return JSONResponse(document, status_code=200 if ready else 503)

    @router.get("/metrics")
    async def metrics() -> Response:
        ASYNCIO_TASKS.set(len(asyncio.all_tasks()))
        return Response(generate_latest(), media_type=CONTENT_TYPE_LATEST)

    @router.get("/openapi.json")
    async def openapi() -> JSONResponse:
        return JSONResponse(app.openapi())

    if name in asyncapi.PARTS:

        @router.get("/asyncapi.json")
        async def messages() -> JSONResponse:
            return JSONResponse(asyncapi.document(name))

    @router.get("/docs")
    async def docs() -> HTMLResponse:
        return HTMLResponse(docs_page.render(app.openapi()), headers=docs_page.HEADERS)

    return router


def _document(app: FastAPI) -> dict[str, Any]:
    """OpenAPI with our errors instead of FastAPI's, and the schemas of bodies read by `json_body`."""
    if app.openapi_schema:
        return app.openapi_schema
    document = get_openapi(
        title=app.title, version=app.version, description=app.description, routes=app.routes
    )
    schemas: dict[str, Any] = document.setdefault("components", {}).setdefault("schemas", {})
    for name in ("HTTPValidationError", "ValidationError"):
        schemas.pop(name, None)
    schemas["Problem"] = PROBLEM_SCHEMA
    for item in document["paths"].values():
        for operation in item.values():
            schemas.update(operation.pop("x-components", {}))
            operation["responses"].pop("422", None)
            operation["responses"].setdefault("default", _PROBLEM_ANSWER)
    app.openapi_schema = document
    return document
