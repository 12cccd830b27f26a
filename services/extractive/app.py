"""The offline answer server as an application. It keeps nothing and needs nothing but its settings."""

from fastapi import FastAPI

from core.settings import ServiceSettings
from services.common.app import service_app
from services.common.lifecycle import Lifecycle
from services.extractive.answer import DESCRIPTION
from services.extractive.routes import router

NAME = "extractive"
PORT = 8010


def create_app(lifecycle: Lifecycle) -> FastAPI:
    """Raises: pydantic.ValidationError for a wrong setting."""
    settings = ServiceSettings()
    app = service_app(NAME, lifecycle, routers=[router], description=DESCRIPTION)
    app.state.word_seconds = settings.extractive_word_ms / 1000
    return app
