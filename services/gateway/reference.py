"""The API as one OpenAPI document: what the services describe, as far as the route table publishes it."""

import asyncio
import time
from collections.abc import Mapping
from typing import Any, Final

import aiohttp
import orjson
from fastapi import FastAPI
from starlette.requests import Request
from starlette.responses import HTMLResponse, JSONResponse, Response
from starlette.routing import Route as Path
from yarl import URL

from core.log import Logger
from services.common import docs_page
from services.common.app import PROBLEM_SCHEMA
from services.gateway.routes import RouteTable

FRESH_SECONDS: Final = 30.0
_LOG = Logger("services.gateway.reference")


class Reference:
    """Asks the services for their documents when somebody wants to read, at most every 30 seconds.

    A service that does not answer is left out of that reading and said so in the description.
    """

    def __init__(
        self, app: FastAPI, services: Mapping[str, URL], routes: RouteTable, http: aiohttp.ClientSession
    ) -> None:
        self._app, self._services, self._routes, self._http = app, services, routes, http
        self._document: dict[str, Any] = {}
        self._until = float("-inf")

    def install(self) -> None:
        """Serve the merged document in place of the gateway's own, which is empty."""
        self._app.router.routes[:0] = [Path("/openapi.json", self._json), Path("/docs", self._page)]

    async def document(self) -> dict[str, Any]:
        if time.monotonic() < self._until:
            return self._document
        parts = await asyncio.gather(*(self._ask(name, url) for name, url in self._services.items()))
        missing = [name for name, part in zip(self._services, parts, strict=True) if part is None]
        merged = merge(
            {name: part for name, part in zip(self._services, parts, strict=True) if part}, self._routes
        )
        merged["info"] = {
            "title": "Headrace",
            "version": self._app.version,
            "description": f"Not answering now: {', '.join(missing)}." if missing else "",
        }
        self._document, self._until = merged, time.monotonic() + (1.0 if missing else FRESH_SECONDS)
        return merged

    async def _ask(self, name: str, base: URL) -> dict[str, Any] | None:
        try:
            async with self._http.get(
                base / "openapi.json", timeout=aiohttp.ClientTimeout(total=3)
            ) as answer:
                answer.raise_for_status()
                document: dict[str, Any] = orjson.loads(await answer.read())
        except (aiohttp.ClientError, TimeoutError, OSError, ValueError) as error:
            _LOG.warn("a service gave no OpenAPI document", service_name=name, error=type(error).__name__)
            return None
        return document

    async def _json(self, _: Request) -> Response:
        return JSONResponse(await self.document())

    async def _page(self, _: Request) -> Response:
        return HTMLResponse(docs_page.render(await self.document()), headers=docs_page.HEADERS)


def merge(documents: Mapping[str, dict[str, Any]], routes: RouteTable) -> dict[str, Any]:
    """One document of the published paths. A schema name that two services use for different things
    gets the service's name in front."""
    paths: dict[str, Any] = {}
    schemas: dict[str, Any] = {"Problem": PROBLEM_SCHEMA}
    security: dict[str, Any] = {}
    for service, document in documents.items():
        own = document.get("components", {}).get("schemas", {})
        clashes = [name for name, schema in own.items() if schemas.get(name, schema) != schema]
        renamed = _rename(document, service, clashes)
        components = renamed.get("components", {})
        schemas |= components.get("schemas", {})
        security |= components.get("securitySchemes", {})
        for path, item in renamed.get("paths", {}).items():
            route = routes.find(path.encode())
            if route is not None and route.service == service:
                paths[path] = {key: value for key, value in item.items() if key.upper() in route.methods}
    return {
        "openapi": "3.1.0",
        "info": {},
        "paths": dict(sorted(paths.items())),
        "components": {"schemas": schemas, "securitySchemes": security},
    }


def _rename(document: dict[str, Any], service: str, names: list[str]) -> dict[str, Any]:
    """`document` with these schemas called `<service>.<name>`, and all references to them."""
    text = orjson.dumps(document)
    for name in names:
        reference = '"#/components/schemas/{}"'
        text = text.replace(reference.format(name).encode(), reference.format(f"{service}.{name}").encode())
    renamed: dict[str, Any] = orjson.loads(text)
    schemas = renamed.get("components", {}).get("schemas", {})
    for name in names:
        schemas[f"{service}.{name}"] = schemas.pop(name)
    return renamed
