"""The object store: any S3, or a local folder with its index in PostgreSQL."""

from core.objects.api import ObjectStore
from core.settings import DatabaseSettings, ObjectSettings


def open_objects(settings: ObjectSettings, database: DatabaseSettings) -> ObjectStore:
    """The store that the settings name; use it with `async with`.

    Raises:
        ValueError: for an address that is neither `s3://…`, `s3s://…` nor `file:///…`, or S3 without keys.
    """
    # Imported when chosen: a process pays for one client only.
    if settings.objects_url.startswith("file:///"):
        from core.objects.folder import FolderObjectStore  # noqa: PLC0415

        return FolderObjectStore(settings, database)
    if settings.objects_url.startswith(("s3://", "s3s://")):
        from core.objects.s3 import S3ObjectStore  # noqa: PLC0415

        return S3ObjectStore(settings)
    raise ValueError(
        f"HEADRACE_OBJECTS_URL is {settings.objects_url!r}; use `s3://host:port`, `s3s://host:port` or `file:///folder`"
    )
