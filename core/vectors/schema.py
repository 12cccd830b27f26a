"""The collection of one embedding model, by what the server can do."""

import re
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Final

from core.vectors.filters import MAX_BYTES

ALIAS: Final = "kb_live"
"""What is searched: an alias of one model's collection."""
MAX_TEXT: Final = 65_535
"""Bytes of a VARCHAR in Milvus."""
_PREFIX: Final = "kb_"
_OTHERS: Final = 5.0
"""Seconds in which another process ends the step at which it was before us."""


@dataclass(frozen=True, slots=True)
class Server:
    """What the server says it is."""

    version: str

    @property
    def is_lite(self) -> bool:
        """The embedded one: its HNSW loses recall under a tenant's filter, its exact search does not."""
        return self.version.startswith("milvus_lite")

    @property
    def has_words(self) -> bool:
        """BM25 came with Milvus 2.5; older ones take such a schema and then find nothing."""
        return self._is_at_least(2, 5)

    @property
    def replaces(self) -> bool:
        """Before 2.4 an upsert puts its rows into the partitions of their ids instead of their tenants, where no
        search of the tenant looks (milvus-io/milvus#30772): nine of ten rows were lost to it on 2.3.5."""
        return self._is_at_least(2, 4)

    def _is_at_least(self, *wanted: int) -> bool:
        if self.is_lite:
            return True
        found = re.match(r"v?(\d+)\.(\d+)", self.version)
        return found is not None and (int(found[1]), int(found[2])) >= wanted


def collection_of(digest: str) -> str:
    return f"{_PREFIX}{digest[:24]}"


def is_ours(collection: str) -> bool:
    return bool(re.fullmatch(rf"{_PREFIX}[0-9a-f]{{24}}", collection))


def create(client: Any, name: str, dimensions: int, server: Server, *, timeout: float) -> bool:
    """Make what is missing of the collection and its indexes, and load it; True where the collection was missing.

    Services and runs meet an empty server at the same moment, and each may be killed half-way: every step looks
    for itself, and what another process made meanwhile is as good.
    """
    from pymilvus import DataType, Function, FunctionType  # noqa: PLC0415 - 140 MB and over a second

    def there() -> bool:
        return bool(client.has_collection(name, timeout=timeout))

    schema = client.create_schema(auto_id=False, enable_dynamic_field=False)
    schema.add_field("id", DataType.VARCHAR, is_primary=True, max_length=64)
    schema.add_field("tenant_id", DataType.VARCHAR, max_length=MAX_BYTES, is_partition_key=True)
    for name_ in ("kb_id", "doc_id", "user_id"):
        schema.add_field(name_, DataType.VARCHAR, max_length=MAX_BYTES)
    for name_ in ("doc_version", "chunk_no"):
        schema.add_field(name_, DataType.INT64)
    schema.add_field("text", DataType.VARCHAR, max_length=MAX_TEXT)
    schema.add_field("meta", DataType.JSON)
    schema.add_field("dense", DataType.FLOAT_VECTOR, dim=dimensions)
    dense: dict[str, Any]
    if server.is_lite:
        dense = {"index_type": "FLAT"}
    else:
        dense = {"index_type": "HNSW", "params": {"M": 16, "efConstruction": 200}}
    indexes: dict[str, dict[str, Any]] = {"dense": dense | {"metric_type": "COSINE"}}
    if server.has_words:
        schema.add_field(
            "terms",
            DataType.VARCHAR,
            max_length=MAX_TEXT,
            enable_analyzer=True,
            analyzer_params={"tokenizer": "standard"},
        )
        schema.add_field("sparse", DataType.SPARSE_FLOAT_VECTOR)
        schema.add_function(
            Function("bm25", FunctionType.BM25, input_field_names=["terms"], output_field_names=["sparse"])
        )
        indexes["sparse"] = {
            "index_type": "SPARSE_INVERTED_INDEX",
            "metric_type": "BM25",
            "params": {"bm25_k1": 1.2, "bm25_b": 0.75},
        }
        indexes |= {name_: {"index_type": "INVERTED"} for name_ in ("kb_id", "doc_id")}
    missing = not there()
    once(there, lambda: client.create_collection(name, schema=schema, timeout=timeout))
    for field, how in indexes.items():
        index = client.prepare_index_params(field, index_name=field, **how)
        once(
            lambda field=field: field in client.list_indexes(name, timeout=timeout),  # type: ignore[misc]
            lambda index=index: client.create_index(name, index, timeout=timeout),  # type: ignore[misc]
        )
    client.load_collection(name, timeout=max(60.0, timeout))
    return missing


def once(done: Callable[[], bool], make: Callable[[], object]) -> None:
    """Make it unless it is done, by us or by another process just now."""
    from pymilvus.exceptions import MilvusException  # noqa: PLC0415

    if done():
        return
    try:
        make()
    except MilvusException:
        deadline = time.monotonic() + _OTHERS
        while not done():
            if time.monotonic() > deadline:
                raise
            time.sleep(0.1)
