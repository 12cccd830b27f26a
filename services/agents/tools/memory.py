"""Client of memory's gRPC API (`memory.v1`), on behalf of a run's user."""

from collections.abc import Sequence
from typing import Final

import grpc

from core.contracts.memory import memory_pb2, memory_pb2_grpc
from services.agents.model import RunContext
from services.common.principal import HEADER, Principal, sign

SEARCH_SECONDS: Final = 8.0
"""The first search of a memory service that has just started loads its embedding model."""
RETRIEVE_SECONDS: Final = 2.0
_MAX_MESSAGE: Final = 4 << 20
_OPTIONS: Final = (
    ("grpc.max_receive_message_length", _MAX_MESSAGE),
    ("grpc.max_send_message_length", _MAX_MESSAGE),
    ("grpc.keepalive_time_ms", 30_000),
    ("grpc.keepalive_timeout_ms", 5_000),
    # A memory service that comes back is found within a second, not after gRPC's two minutes.
    ("grpc.initial_reconnect_backoff_ms", 100),
    ("grpc.max_reconnect_backoff_ms", 1_000),
)


class MemoryAwayError(Exception):
    """Memory did not answer in time, or refused; `reason` is the gRPC status in lower case."""

    def __init__(self, reason: str) -> None:
        super().__init__(f"memory: {reason}")
        self.reason = reason


class MemoryClient:
    """One channel of this process. Close it.

    Args:
        address: `host:port`.
        key: signs the principal.
    """

    def __init__(self, address: str, key: bytes) -> None:
        self._channel = grpc.aio.insecure_channel(address, options=_OPTIONS)
        self._memory = memory_pb2_grpc.MemoryServiceStub(self._channel)
        self._knowledge = memory_pb2_grpc.KnowledgeServiceStub(self._channel)
        self._key = key

    async def search(
        self, run: RunContext, query: str, knowledge_bases: Sequence[str], limit: int
    ) -> list[memory_pb2.Passage]:
        """Passages for a query, best first. Raises: MemoryAwayError."""
        request = memory_pb2.SearchRequest(
            query=query, knowledge_bases=knowledge_bases, top_k=limit, mode="hybrid"
        )
        try:
            found = await self._memory.Search(request, timeout=SEARCH_SECONDS, metadata=self._who(run))
        except grpc.aio.AioRpcError as error:
            raise MemoryAwayError(error.code().name.lower()) from error
        return list(found.passages)

    async def retrieve(
        self, run: RunContext, document: str, version: int, start: int, end: int
    ) -> str | None:
        """Source text between two offsets; None where there is none that the user may read.

        Raises:
            MemoryAwayError.
        """
        request = memory_pb2.RetrieveRequest(document=document, version=version, start=start, end=end)
        try:
            found = await self._knowledge.Retrieve(request, timeout=RETRIEVE_SECONDS, metadata=self._who(run))
        except grpc.aio.AioRpcError as error:
            if error.code() in (
                grpc.StatusCode.NOT_FOUND,
                grpc.StatusCode.INVALID_ARGUMENT,
                grpc.StatusCode.OUT_OF_RANGE,
            ):
                return None
            raise MemoryAwayError(error.code().name.lower()) from error
        return str(found.text)

    async def close(self) -> None:
        await self._channel.close()

    def _who(self, run: RunContext) -> tuple[tuple[str, str], ...]:
        principal = Principal(
            tenant_id=run.tenant_id,
            subject=run.user,
            kind="api_key" if run.user.startswith("key_") else "user",
            scopes=frozenset({"memory:read"}),
        )
        return ((HEADER, sign(principal, self._key)),)
