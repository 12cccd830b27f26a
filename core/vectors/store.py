"""Milvus behind the few calls that documents need. Synchronous and thread-safe.

Searches read what the alias names; writes go to the collection of the model given to `ensure`. Both are
the same except while an index for another model is being built (`activate` moves the alias once).
What is visible is not decided here: readers filter by the live version in PostgreSQL.
"""

import logging
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from typing import Any, Final

from core.log import Logger
from core.settings import VectorSettings
from core.vectors import filters
from core.vectors.api import (
    Chunk,
    Hit,
    LexicalUnsupportedError,
    Model,
    ModelMismatchError,
    VectorsError,
    VectorsUnavailableError,
)
from core.vectors.schema import ALIAS, MAX_TEXT, Server, collection_of, create, is_ours, once

BATCH: Final = 200
"""Chunks a request: about 3 MB with vectors of 384 and long passages."""
_ALIAS_SECONDS: Final = 10.0
_OUTPUT: Final = ["kb_id", "doc_id", "user_id", "doc_version", "chunk_no", "text", "meta"]
_OPTIONS: Final = {"grpc.keepalive_time_ms": 2**31 - 1, "grpc.keepalive_permit_without_calls": False}
"""No pings: every call has a deadline. The driver's own, each 10 s, made the embedded server hang up on a client
that had been quiet for some minutes (`too_many_pings`)."""
_AWAY: Final = frozenset({"UNAVAILABLE", "DEADLINE_EXCEEDED", "CANCELLED"})

_log = Logger("core.vectors")


class Vectors:
    """One client of the vector store; connects at the first call.

    Args:
        model: is given to `ensure` by the first call that needs its collection.
        timeout: seconds for one call.
    """

    def __init__(
        self, settings: VectorSettings, model: Model | None = None, *, timeout: float = 10.0
    ) -> None:
        self._settings, self._wanted = settings, model
        self._timeout = timeout
        self._lock = threading.Lock()
        self._connected: tuple[Any, Server] | None = None
        self._model: Model | None = None
        self._aliased = ("", 0.0)

    @property
    def has_words(self) -> bool:
        """False where the server has no BM25: then only dense searches are answered."""
        return self._open()[1].has_words

    def ensure(self, model: Model) -> str:
        """Make the model's collection and the alias where they are missing; returns the collection.

        Raises:
            VectorsUnavailableError, VectorsError
        """
        client, server = self._open()
        name = collection_of(model.digest)
        with self._lock, self._guarded(f"collection {name}"):
            if create(client, name, model.dimensions, server, timeout=self._timeout):
                _log.info(
                    "collection made", collection=name, server=server.version, word_search=server.has_words
                )
                if not server.has_words:
                    _log.warn(
                        "this server has no word search; searches are dense only", server=server.version
                    )
            once(
                lambda: self._alias(client) is not None,
                lambda: client.create_alias(name, ALIAS, timeout=self._timeout),
            )
            self._model = model
            self._aliased = ("", 0.0)
        return name

    def activate(self, model: Model) -> bool:
        """From now on searches read this model's collection, seen at once and by everybody; False where they did."""
        client, _ = self._open()
        name = collection_of(model.digest)
        with self._guarded(f"alias {ALIAS}"):
            if self._alias(client) == name:
                return False
            client.alter_alias(name, ALIAS, timeout=self._timeout)
        self._aliased = ("", 0.0)
        return True

    def forget_others(self) -> None:
        """Drop the collections that searches do not read, of other models than this one's."""
        own = collection_of(self._required().digest)
        client, _ = self._open()
        with self._guarded("collections of other models"):
            kept = {own, self._alias(client)}
            for name in self._collections(client):
                if name not in kept:
                    client.drop_collection(name, timeout=self._timeout)
                    _log.info("collection dropped", collection=name)

    def upsert(self, tenant: str, chunks: Sequence[Chunk]) -> None:
        """Write chunks; those with an id that is there replace it.

        Raises:
            ValueError: without a tenant, or for a text longer than the store takes.
        """
        filters.of_tenant(tenant)
        client, server = self._open()
        name = collection_of(self._required().digest)
        by_id = {chunk.id: _row(tenant, chunk, words=server.has_words) for chunk in chunks}
        rows, timeout = list(by_id.values()), max(60.0, self._timeout)
        with self._guarded(f"{len(rows)} chunks"):
            for start in range(0, len(rows), BATCH):
                group = rows[start : start + BATCH]
                if server.replaces:
                    client.upsert(name, group, timeout=timeout)
                else:
                    client.delete(name, filter=filters.of_ids([row["id"] for row in group]), timeout=timeout)
                    client.insert(name, group, timeout=timeout)

    def delete(self, tenant: str, document: str, version: int | None = None) -> None:
        """Remove a document's chunks, or those of one version, from the collections of all models.

        Raises:
            ValueError: without a tenant or document.
        """
        if not document:
            raise ValueError("which document's chunks to delete is missing")
        expression = filters.of_document(tenant, document, version)
        client, _ = self._open()
        with self._guarded(f"chunks of {document}"):
            for name in self._collections(client):
                client.delete(name, filter=expression, timeout=max(60.0, self._timeout))

    def count(
        self, tenant: str, document: str = "", version: int | None = None, *, everywhere: bool = False
    ) -> int:
        """Chunks of a tenant, document or version.

        Args:
            everywhere: in the collections of all models, as `delete` removes them; else in this model's.

        Sees every write acknowledged before the call, and after it every search sees them too: count
        what was written before making it visible.
        """
        expression = filters.of_document(tenant, document, version)
        client, _ = self._open()
        own = [] if everywhere else [collection_of(self._required().digest)]
        found = 0
        with self._guarded("count"):
            for name in own or self._collections(client):
                rows = self._loaded(
                    client,
                    name,
                    client.query,
                    filter=expression,
                    output_fields=["count(*)"],
                    consistency_level="Strong",
                    timeout=self._timeout,
                )
                found += int(rows[0]["count(*)"])
        return found

    def dense(
        self,
        tenant: str,
        vector: Sequence[float],
        limit: int,
        knowledge_bases: Sequence[str] | None = None,
        *,
        user: str = "",
    ) -> list[Hit]:
        """The `limit` nearest chunks, best first.

        Args:
            knowledge_bases: only documents of these; None: of all, an empty list: of none.
            user: also the memories of this user.

        Raises:
            ModelMismatchError: the alias names the collection of another model.
            ValueError: without a tenant, or with nothing to search in.
        """
        expression = filters.readable(tenant, knowledge_bases, user)
        client, server = self._open()
        own = collection_of(self._required().digest)
        if (live := self._live(client)) != own:
            raise ModelMismatchError(
                f"searches read {live}, which another embedding model made, and this process embeds for {own}: "
                "index again and activate it, or set HEADRACE_EMBEDDING_MODEL to the other one"
            )
        params = {} if server.is_lite else {"ef": max(200, 4 * limit)}
        return self._search(client, [float(x) for x in vector], "dense", limit, expression, "COSINE", params)

    def lexical(
        self,
        tenant: str,
        terms: Sequence[str],
        limit: int,
        knowledge_bases: Sequence[str] | None = None,
        *,
        user: str = "",
    ) -> list[Hit]:
        """The `limit` best chunks by BM25 over tokens of `core.knowledge.terms`; see `dense`.

        Raises:
            LexicalUnsupportedError: the server has no BM25.
        """
        expression = filters.readable(tenant, knowledge_bases, user)
        self._required()
        client, server = self._open()
        if not server.has_words:
            raise LexicalUnsupportedError(
                f"the vector server {server.version} has no word search; use mode `dense`, or Milvus 2.5 or newer"
            )
        if not terms:
            return []
        return self._search(client, " ".join(terms), "sparse", limit, expression, "BM25", {})

    def ping(self) -> None:
        """Raises: VectorsUnavailableError."""
        client, _ = self._open()
        with self._guarded("ping"):
            client.get_server_version(timeout=2.0)

    def close(self) -> None:
        with self._lock:
            if self._connected is not None:
                self._connected[0].close()
                self._connected = None

    def _search(
        self,
        client: Any,
        query: Any,
        field: str,
        limit: int,
        expression: str,
        metric: str,
        params: dict[str, Any],
    ) -> list[Hit]:
        with self._guarded("search"):
            found = self._loaded(
                client,
                ALIAS,
                client.search,
                data=[query],
                anns_field=field,
                limit=limit,
                filter=expression,
                output_fields=_OUTPUT,
                search_params={"metric_type": metric, "params": params},
                consistency_level="Bounded",  # Strong waits 400 ms for a tick
                timeout=self._timeout,
            )
        hits = [_hit(one, words=metric == "BM25") for one in found[0]]
        return sorted(hits, key=lambda hit: (-hit.score, hit.id))

    @contextmanager
    def _guarded(self, what: str) -> Iterator[None]:
        """Errors as ours. A client that lost its server does not find it again: the next call gets a new one."""
        try:
            with _translated(what):
                yield
        except VectorsUnavailableError:
            connected, self._connected = self._connected, None
            if connected is not None:
                with suppress(Exception):
                    connected[0].close()
            raise

    def _loaded(self, client: Any, name: str, call: Callable[..., Any], **arguments: Any) -> Any:
        """A read. The embedded server forgets at every start which collections were loaded; others load them by
        themselves, which takes a while."""
        from pymilvus.exceptions import MilvusException  # noqa: PLC0415

        try:
            return call(name, **arguments)
        except MilvusException as error:
            if "load" not in str(error).lower():
                raise
        try:
            client.load_collection(name, timeout=self._timeout)
        except MilvusException as error:
            if "timeout" not in str(error).lower():
                raise
            raise VectorsUnavailableError(f"{name}: the vector store is still loading it") from error
        return call(name, **arguments)

    def _required(self) -> Model:
        if self._model is None:
            if self._wanted is None:
                raise VectorsError("no embedding model is set: call ensure(model) first")
            self.ensure(self._wanted)
            return self._wanted
        return self._model

    def _collections(self, client: Any) -> list[str]:
        return sorted(filter(is_ours, client.list_collections(timeout=self._timeout)))

    def _live(self, client: Any) -> str | None:
        name, until = self._aliased
        if not name or until < time.monotonic():
            with self._guarded(f"alias {ALIAS}"):
                name = self._alias(client) or ""
            self._aliased = (name, time.monotonic() + _ALIAS_SECONDS)
        return name

    def _alias(self, client: Any) -> str | None:
        """The collection that the alias names; None where there is no alias."""
        for name in self._collections(client):
            if ALIAS in client.list_aliases(name, timeout=self._timeout)["aliases"]:
                return name
        return None

    def _open(self) -> tuple[Any, Server]:
        if self._connected is None:
            from pymilvus import MilvusClient  # noqa: PLC0415 - 140 MB and over a second

            # It logs every refusal with the request's values before it raises it.
            logging.getLogger("pymilvus").setLevel(logging.CRITICAL + 1)
            with self._lock, self._guarded("connect"):
                if self._connected is None:
                    token = self._settings.vectors_token
                    client = MilvusClient(
                        uri=self._settings.vectors_url,
                        token=token.get_secret_value() if token else "",
                        timeout=self._timeout,
                        grpc_options=_OPTIONS,
                    )
                    server = Server(str(client.get_server_version(timeout=self._timeout)))
                    self._connected = (client, server)
        return self._connected


@contextmanager
def _translated(what: str) -> Iterator[None]:
    """The driver's errors as ours, without its values."""
    import grpc  # noqa: PLC0415
    from pymilvus.exceptions import MilvusException, MilvusUnavailableException  # noqa: PLC0415

    try:
        yield
    except grpc.RpcError as error:
        status: Callable[[], Any] | None = getattr(error, "code", None)
        name = status().name if status else "UNKNOWN"
        kind = VectorsUnavailableError if name in _AWAY else VectorsError
        raise kind(f"{what}: the vector store answered {name}") from error
    except MilvusException as error:
        if "illegal connection params" in str(error):
            raise VectorsUnavailableError(
                f"{what}: the vector store does not answer, or refuses HEADRACE_VECTORS_TOKEN"
            ) from error
        away = isinstance(error, MilvusUnavailableException) or any(name in str(error) for name in _AWAY)
        if away or "connect" in str(error).lower() or "deadline" in str(error).lower():
            raise VectorsUnavailableError(f"{what}: the vector store does not answer") from error
        raise VectorsError(f"{what}: the vector store refused: {str(error.message)[:300]}") from error


def _row(tenant: str, chunk: Chunk, *, words: bool) -> dict[str, Any]:
    if len(chunk.text.encode()) > MAX_TEXT:
        raise ValueError(f"chunk {chunk.number} of {chunk.document} is longer than {MAX_TEXT} bytes")
    row: dict[str, Any] = {
        "id": chunk.id,
        "tenant_id": filters.encoded(tenant),
        "kb_id": filters.encoded(chunk.knowledge_base),
        "doc_id": filters.encoded(chunk.document),
        "user_id": filters.encoded(chunk.user),
        "doc_version": chunk.version,
        "chunk_no": chunk.number,
        "text": chunk.text,
        "meta": {
            "start": chunk.start,
            "end": chunk.end,
            "page": chunk.page,
            "headings": list(chunk.headings),
        },
        "dense": [float(x) for x in chunk.vector],
    }
    if words:
        joined = " ".join(chunk.terms)
        if len(joined.encode()) > MAX_TEXT:
            joined = joined.encode()[:MAX_TEXT].decode(errors="ignore").rpartition(" ")[0]
        row["terms"] = joined
    return row


def _hit(found: Any, *, words: bool) -> Hit:
    row, meta = found["entity"], found["entity"]["meta"]
    return Hit(
        id=str(found["id"]),
        document=filters.decoded(row["doc_id"]),
        version=int(row["doc_version"]),
        number=int(row["chunk_no"]),
        text=row["text"],
        start=int(meta["start"]),
        end=int(meta["end"]),
        knowledge_base=filters.decoded(row["kb_id"]),
        user=filters.decoded(row["user_id"]),
        page=int(meta["page"]),
        headings=tuple(meta["headings"]),
        # the embedded server gives BM25 as a distance, below zero
        score=abs(float(found["distance"])) if words else float(found["distance"]),
    )
