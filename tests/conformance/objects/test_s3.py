"""The object store on a real MinIO."""

import pytest

from core.objects import open_objects
from core.objects.api import ObjectStoreUnavailableError
from core.settings import DatabaseSettings, ObjectSettings
from tests.conformance.objects.suite import PLAIN, ObjectStoreSuite
from tests.servers import free_port

pytestmark = pytest.mark.stack


@pytest.fixture
def objects_settings(minio: ObjectSettings) -> ObjectSettings:
    return minio


@pytest.fixture
def index() -> DatabaseSettings:
    """S3 needs no index: settings that reach nothing."""
    password = "0123456789abcdef"
    return DatabaseSettings(
        database_url="postgresql://127.0.0.1:1/none",
        database_owner_password=password,
        database_app_password=password,
        database_system_password=password,
    )


class TestS3(ObjectStoreSuite):
    async def test_an_absent_server_is_named(self, minio: ObjectSettings, index: DatabaseSettings) -> None:
        nobody = minio.model_copy(update={"objects_url": f"s3://127.0.0.1:{free_port()}"})
        async with open_objects(nobody, index) as store:
            with pytest.raises(ObjectStoreUnavailableError, match=nobody.objects_url):
                await store.get(PLAIN, "key")

    async def test_wrong_keys_are_named(self, minio: ObjectSettings, index: DatabaseSettings) -> None:
        stranger = minio.model_copy(update={"objects_access_key": index.database_app_password})
        async with open_objects(stranger, index) as store:
            with pytest.raises(ObjectStoreUnavailableError, match="InvalidAccessKeyId"):
                await store.put(PLAIN, "key", b"")

    def test_keys_are_needed(self, index: DatabaseSettings) -> None:
        with pytest.raises(ValueError, match="HEADRACE_OBJECTS_ACCESS_KEY"):
            open_objects(ObjectSettings(objects_url="s3://127.0.0.1:1"), index)
