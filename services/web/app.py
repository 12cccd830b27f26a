"""The web service as an application: settings in, pages out."""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Final

import aiohttp
from fastapi import FastAPI
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Mount
from starlette.staticfiles import StaticFiles

from core.settings import PagesSettings, ServiceSettings, WebSettings
from services.common.app import service_app
from services.common.lifecycle import Lifecycle
from services.web import conversations, documents, invoices, money, operations, sign_in
from services.web.api import Api
from services.web.cookies import Cookies
from services.web.headers import SafeHeaders
from services.web.person import Renewals
from services.web.routing import Web, failed

NAME: Final = "web"
PORT: Final = 3000
STATIC: Final = Path(__file__).parent / "static"


class _Static(StaticFiles):
    """Files that browsers keep for an hour and ask about after that."""

    def file_response(self, *args: object, **kwargs: object) -> Response:
        response = super().file_response(*args, **kwargs)  # type: ignore[arg-type]
        response.headers["cache-control"] = "public, max-age=3600"
        return response


def create_app(lifecycle: Lifecycle) -> FastAPI:
    """Raises: pydantic.ValidationError where a setting is missing or wrong."""
    services, web, pages = ServiceSettings(), WebSettings(), PagesSettings()
    tls = services.web_url.startswith("https://")
    cookies = Cookies(bytes.fromhex(web.web_key.get_secret_value()), secure=tls)

    @asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncIterator[None]:
        connector = aiohttp.TCPConnector(limit=0, keepalive_timeout=30)
        async with aiohttp.ClientSession(
            connector=connector, cookie_jar=aiohttp.DummyCookieJar(), read_bufsize=1 << 20
        ) as http:
            api = Api(services.gateway_url, http, bytes.fromhex(pages.pages_key.get_secret_value()))
            app.state.web = Web(api, cookies, Renewals())
            lifecycle.advisory["gateway"] = lambda: api.call("GET", "/healthz")
            yield

    app = service_app(
        NAME, lifecycle, routers=[], lifespan=lifespan, description="Pages; the API is the gateway's."
    )
    for each in (sign_in, conversations, documents, money, invoices, operations):
        app.router.routes.extend(each.ROUTES)
    app.router.routes.append(Mount("/static", _Static(directory=STATIC)))
    app.add_middleware(SafeHeaders, tls=tls)

    async def on_http(request: Request, error: Exception) -> Response:
        status = error.status_code if isinstance(error, HTTPException) else 500
        person = request.app.state.web.person(request)
        return failed(person, status, "not_found" if status in {404, 405} else "error")

    app.add_exception_handler(HTTPException, on_http)
    return app
