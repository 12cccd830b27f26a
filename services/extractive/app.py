"""The offline answer server as an application. It keeps nothing but the graph that it makes of the model's weights."""

from fastapi import FastAPI

from core.settings import DataSettings, ServiceSettings
from services.common.app import service_app
from services.common.lifecycle import Lifecycle
from services.extractive.answer import DESCRIPTION
from services.extractive.embeddings import Embeddings
from services.extractive.routes import router

NAME = "extractive"
PORT = 8010


def create_app(lifecycle: Lifecycle) -> FastAPI:
    """Raises: pydantic.ValidationError for a wrong setting."""
    settings = ServiceSettings()
    app = service_app(NAME, lifecycle, routers=[router], description=DESCRIPTION)
    app.state.word_seconds = settings.extractive_word_ms / 1000
    app.state.embeddings = Embeddings(DataSettings().state_dir / "embedding")
    return app
