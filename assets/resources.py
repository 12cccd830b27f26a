"""From the environment's settings to what assets and sensors use. Nothing is read before one of them runs."""

from pathlib import Path
from typing import TYPE_CHECKING

import dagster as dg
from pydantic import PrivateAttr

from core.settings import (
    DatabaseSettings,
    DataSettings,
    EventLogSettings,
    ObjectSettings,
    UsageSettings,
    VectorSettings,
)

if TYPE_CHECKING:
    from assets.usage.figures import Figures
    from core.embedding import EmbeddingModel
    from core.lake import Lake


class Platform(dg.ConfigurableResource):  # type: ignore[type-arg]
    """The installation this code location belongs to. Holds no secret: settings stay in the environment."""

    _lake: "Lake | None" = PrivateAttr(default=None)
    _figures: "Figures | None" = PrivateAttr(default=None)
    _model: "EmbeddingModel | None" = PrivateAttr(default=None)

    @property
    def eventlog(self) -> EventLogSettings:
        return EventLogSettings()

    @property
    def database(self) -> DatabaseSettings:
        return DatabaseSettings()

    @property
    def objects(self) -> ObjectSettings:
        return ObjectSettings()

    @property
    def vectors(self) -> VectorSettings:
        return VectorSettings()

    @property
    def usage(self) -> UsageSettings:
        return UsageSettings()

    @property
    def state(self) -> Path:
        """Folder of rebuildable state on this machine."""
        return DataSettings().state_dir

    def lake(self) -> "Lake":
        """The lake, one for all assets of a run (Dagster makes a resource for each run or tick)."""
        from assets.usage.generation import usage_lake  # noqa: PLC0415

        if self._lake is None:
            self._lake = usage_lake(self.objects, self.database)
        return self._lake

    def figures(self) -> "Figures":
        """What the usage assets of a run say of themselves, one for all of them."""
        from assets.usage.figures import Figures  # noqa: PLC0415

        if self._figures is None:
            self._figures = Figures(self.lake())
        return self._figures

    def model(self) -> "EmbeddingModel":
        """The embedding model, loaded once a run by the first step that needs it."""
        from core.embedding import open_model  # noqa: PLC0415 - NumPy that only runs need

        if self._model is None:
            self._model = open_model(self.vectors, self.state)
        return self._model
