"""What a running platform holds, asked of its servers: topics, buckets, keys of the cache, and the lake's audit table."""

import re
from collections.abc import Iterable
from typing import Any
from urllib.parse import urlsplit

from confluent_kafka.admin import AdminClient
from minio import Minio
from sqlalchemy import text

from assets.audit.schema import EVENTS
from core.cache import open_cache
from core.database import Database
from core.lake import Lake
from core.personal_data import Kind, places
from core.settings import CacheSettings, DatabaseSettings, EventLogSettings, ObjectSettings
from deploy.dagster_web import ask
from deploy.installation import Installation
from deploy.session import settings_of

CHECKS = """{ assetNodeOrError(assetKey: {path: ["audit_events"]}) { ... on AssetNode { assetChecksOrError {
  ... on AssetChecks { checks { name blocking executionForLatestMaterialization { status } } } } } } }"""

ENDED = frozenset({"SUCCEEDED", "FAILED", "EXECUTION_FAILED", "SKIPPED"})


async def _names(installation: Installation, table: str) -> set[str]:
    database = Database(settings_of(installation, DatabaseSettings), role="system")
    try:
        async with database.reader() as connection:
            return set(await connection.scalars(text(f"select name from {table}")))
    finally:
        await database.close()


async def topics(installation: Installation) -> set[str]:
    """Those of the log, without what Kafka keeps for itself."""
    scheme, _, servers = settings_of(installation, EventLogSettings).eventlog_url.partition("://")
    if scheme != "kafka":
        return await _names(installation, "eventlog.topic")
    listed = AdminClient({"bootstrap.servers": servers}).list_topics(timeout=30).topics
    return {name for name in listed if not name.startswith("__")}


async def buckets(installation: Installation) -> set[str]:
    settings = settings_of(installation, ObjectSettings)
    url = urlsplit(settings.objects_url)
    if url.scheme == "file":
        return await _names(installation, "object_bucket")
    access, secret = settings.objects_access_key, settings.objects_secret_key
    assert access is not None
    assert secret is not None
    client = Minio(
        url.netloc, access.get_secret_value(), secret.get_secret_value(), secure=url.scheme == "s3s",
        region=settings.objects_region,
    )  # fmt: skip
    return {bucket.name.removeprefix(settings.objects_bucket_prefix) for bucket in client.list_buckets()}


async def keys(installation: Installation) -> set[str]:
    """Every key of the cache; most live for a minute."""
    cache = open_cache(settings_of(installation, CacheSettings), timeout=10)
    try:
        return {key.decode() async for key in cache.scan_iter(count=1000)}
    finally:
        await cache.aclose()


def unmapped(found: Iterable[str]) -> list[str]:
    """Keys of no family of the data map."""
    families = [re.sub(r"\\\{\w+\\\}", ".+", re.escape(name)) for name in places(Kind.CACHE)]
    return [key for key in found if not re.fullmatch("|".join(families), key)]


def audited(installation: Installation, tenant: str) -> list[dict[str, Any]]:
    """Landed audit events of a tenant, as the lake holds them."""
    table = Lake(settings_of(installation, ObjectSettings)).open(EVENTS)
    if table is None:
        return []
    rows = table.to_pyarrow_table(columns=["tenant", "action", "target", "fate"]).to_pylist()
    return [row for row in rows if row["tenant"] == tenant]


def checked(installation: Installation) -> dict[str, str | None]:
    """How each blocking check of the audit table ended on what landed last, by its name."""
    node = ask(installation.port("dagster-web"), CHECKS)["assetNodeOrError"]
    return {
        check["name"]: (check["executionForLatestMaterialization"] or {}).get("status")
        for check in node["assetChecksOrError"]["checks"]
        if check["blocking"]
    }
