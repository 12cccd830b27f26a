"""The usage path on both sets of servers."""

import uuid
from collections.abc import Iterator
from pathlib import Path

import pytest

from core.settings import DatabaseSettings, EventLogSettings, ObjectSettings
from tests.assets.usage.site import Site


@pytest.fixture(params=["tables and folder", pytest.param("Kafka and MinIO", marks=pytest.mark.stack)])
def site(request: pytest.FixtureRequest, postgres: DatabaseSettings, tmp_path: Path) -> Iterator[Site]:
    """An installation with an empty topic and an empty lake."""
    if request.param == "Kafka and MinIO":
        eventlog, objects = request.getfixturevalue("kafka"), request.getfixturevalue("minio")
        objects = objects.model_copy(update={"objects_bucket_prefix": f"t{uuid.uuid4().hex[:12]}-"})
    else:
        eventlog = EventLogSettings(eventlog_url="postgresql:")
        objects = ObjectSettings(objects_url=tmp_path.as_uri())
    made = Site(postgres, eventlog, objects, tmp_path)
    made.reset()
    yield made
    made.reset()


@pytest.fixture
def local_site(postgres: DatabaseSettings, tmp_path: Path) -> Iterator[Site]:
    """The one on tables and a folder, for what a test does to files and tables itself."""
    objects = ObjectSettings(objects_url=tmp_path.as_uri())
    made = Site(postgres, EventLogSettings(eventlog_url="postgresql:"), objects, tmp_path)
    made.reset()
    yield made
    made.reset()
