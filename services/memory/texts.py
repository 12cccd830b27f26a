"""Source text of documents: what a quote must equal."""

from collections import OrderedDict
from typing import Final

from core.database import Database, tenant
from core.knowledge import derived
from core.objects.api import ObjectNotFoundError, ObjectStore
from services.common.errors import Problem, not_found
from services.common.principal import Principal
from services.memory import store
from services.memory.documents import own_tenant, readable

MAX_SLICE: Final = 500_000
"""Code points in one answer; they must fit a message of 4 MB."""
_CACHED: Final = 16_000_000
"""Code points of texts that are kept: citations of one answer come from few documents."""


class Texts:
    def __init__(self, database: Database, objects: ObjectStore) -> None:
        self._database, self._objects = database, objects
        self._cache: OrderedDict[str, str] = OrderedDict()
        self._size = 0

    async def slice(self, principal: Principal, document_id: str, version: int, start: int, end: int) -> str:
        """The extracted text of one version between two code points; shorter where the text ends before.

        Raises:
            Problem: 404 for a document, version or text that is not there, 422 `range_invalid`.
        """
        if not 0 <= start <= end or end - start > MAX_SLICE:
            raise Problem(
                422, "range_invalid", "No such range", f"Give 0 <= start <= end, at most {MAX_SLICE} apart."
            )
        with tenant(own_tenant(principal)):
            async with self._database.writer() as connection:
                document = await store.document(connection, document_id)
                found = await store.version(connection, document_id, version)
        if document is None or found is None:
            raise not_found("version of a document")
        readable(principal, document)
        if found.text_key is None:
            raise Problem(
                404, "no_text", "No text yet", f"Version {version} is {found.state}; it has no text."
            )
        return (await self._text(found.text_key))[start:end]

    async def _text(self, key: str) -> str:
        text = self._cache.get(key)
        if text is not None:
            self._cache.move_to_end(key)
            return text
        try:
            text = (await self._objects.get(derived.BUCKET, key)).decode()
        except ObjectNotFoundError:
            raise Problem(
                404, "no_text", "No text", "The derived text is gone; index the document again."
            ) from None
        self._cache[key] = text
        self._size += len(text)
        while self._size > _CACHED and len(self._cache) > 1:
            _, old = self._cache.popitem(last=False)
            self._size -= len(old)
        return text
