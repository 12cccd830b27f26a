"""Memory's gRPC API on a real socket, over documents that the test gives it."""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import Any

import grpc

from core.contracts.memory import memory_pb2, memory_pb2_grpc
from services.common.principal import HEADER, Principal, verify


@dataclass
class MemoryDouble:
    """Every search finds every document; retrieving reads `texts` as they are then.

    Args:
        texts: (document, version) to text.
    """

    key: bytes
    texts: dict[tuple[str, int], str]
    broken: bool = False
    """True: UNAVAILABLE, whatever is asked."""
    callers: list[Principal] = field(default_factory=list)
    searches: list[Any] = field(default_factory=list)
    deadlines: list[float] = field(default_factory=list)

    @asynccontextmanager
    async def serve(self) -> AsyncIterator[str]:
        """`host:port` of the running server."""
        server = grpc.aio.server()
        memory_pb2_grpc.add_MemoryServiceServicer_to_server(self, server)
        memory_pb2_grpc.add_KnowledgeServiceServicer_to_server(self, server)
        port = server.add_insecure_port("127.0.0.1:0")
        await server.start()
        try:
            yield f"127.0.0.1:{port}"
        finally:
            await server.stop(0)

    async def Search(self, request: Any, context: Any) -> Any:  # noqa: N802 - the contract's
        await self._check(context)
        self.searches.append(request)
        passages = [
            memory_pb2.Passage(
                chunk=f"{document}#1", document=document, version=version, name=f"{document}.md", text=text,
                start=0, end=len(text), page=3, headings=["Handbook"], score=1.0, kind="document",
            )
            for (document, version), text in self.texts.items()
        ]  # fmt: skip
        return memory_pb2.SearchResponse(passages=passages[: request.top_k or 8])

    async def Retrieve(self, request: Any, context: Any) -> Any:  # noqa: N802 - the contract's
        await self._check(context)
        text = self.texts.get((request.document, request.version))
        if text is None:
            await context.abort(grpc.StatusCode.NOT_FOUND, "no such document")
        return memory_pb2.RetrieveResponse(text=text[request.start : request.end] if text else "")

    async def GetDocumentStatus(self, request: Any, context: Any) -> Any:  # noqa: N802 - the contract's
        return memory_pb2.DocumentStatus(document=request.document, state="indexed")

    async def DeleteDocument(self, request: Any, context: Any) -> Any:  # noqa: N802 - the contract's
        return memory_pb2.DocumentStatus(document=request.document, state="cancelled")

    async def _check(self, context: Any) -> None:
        metadata = dict(context.invocation_metadata())
        self.callers.append(verify(metadata[HEADER], self.key))
        self.deadlines.append(context.time_remaining())
        if self.broken:
            await context.abort(grpc.StatusCode.UNAVAILABLE, "told to")
