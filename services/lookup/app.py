"""The lookup as an application: settings in, routes out."""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from functools import partial

from fastapi import FastAPI

from core.settings import DatabaseSettings, DataSettings, ObjectSettings, SecuritySettings
from services.common.app import service_app
from services.common.auth import Identity, internal_key
from services.common.lifecycle import Lifecycle
from services.lookup.handlers import Lookup, check, lakes
from services.lookup.routes import router
from services.lookup.turns import Turns

NAME = "lookup"
PORT = 8011


def create_app(lifecycle: Lifecycle) -> FastAPI:
    """Read the settings and build the app.

    Raises:
        pydantic.ValidationError: a setting is missing, wrong or a known default.
    """
    objects, database, data, security = (
        ObjectSettings(),
        DatabaseSettings(),
        DataSettings(),
        SecuritySettings(),
    )

    @asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncIterator[None]:
        # Only parts of the platform call it, with their signed header.
        app.state.identity = Identity(internal_key(security), None)
        app.state.lookup = partial(Lookup, lakes(objects, database), data.state_dir, Turns())
        lifecycle.checks["database"] = partial(check, objects, database)
        yield

    return service_app(
        NAME, lifecycle, routers=[router], lifespan=lifespan, description="Reads the lake for other services."
    )
