"""`memory.v1`: the same searches for agents, with deadlines, signed callers and honest statuses."""

from collections.abc import AsyncIterator
from typing import Any

import grpc
import pytest
from grpc_health.v1 import health_pb2, health_pb2_grpc

from core.contracts.memory import memory_pb2 as pb
from core.contracts.memory import memory_pb2_grpc as pb_grpc
from services.common.principal import HEADER, sign
from tests.services.memory.platform import Caller, Indexer, Platform

TEXT = "The invoice is due within thirty days of its date."


@pytest.fixture
async def channel(platform: Platform) -> AsyncIterator[grpc.aio.Channel]:
    async with grpc.aio.insecure_channel(platform.grpc) as channel:
        yield channel


def who(caller: Caller) -> tuple[tuple[str, str], ...]:
    return ((HEADER, caller.platform.header(caller.principal)),)


async def refusal(call: Any) -> grpc.aio.AioRpcError:
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await call
    return caught.value


async def test_search_retrieve_status_delete(
    channel: grpc.aio.Channel, acme: Caller, globex: Caller, indexer: Indexer
) -> None:
    memory, knowledge = pb_grpc.MemoryServiceStub(channel), pb_grpc.KnowledgeServiceStub(channel)
    document = await acme.upload(await acme.base(), "terms.txt", TEXT)
    await indexer.index(acme.tenant, document)
    found = await memory.Search(
        pb.SearchRequest(query="when is the invoice due", explain=True), timeout=8, metadata=who(acme)
    )
    (passage,) = found.passages
    assert (passage.document, passage.version, passage.name, passage.kind) == (
        document, 1, "terms.txt", "document",
    )  # fmt: skip
    assert '"lost":""' in found.explain
    here = pb.RetrieveRequest(document=document, version=1, start=passage.start, end=passage.end)
    assert (await knowledge.Retrieve(here, timeout=5, metadata=who(acme))).text == passage.text == TEXT
    status = await knowledge.GetDocumentStatus(
        pb.DocumentRequest(document=document), timeout=5, metadata=who(acme)
    )
    assert (status.state, status.live_version) == ("indexed", 1)

    foreign = await memory.Search(pb.SearchRequest(query="invoice"), timeout=5, metadata=who(globex))
    assert list(foreign.passages) == []
    for call in (knowledge.Retrieve(here, timeout=5, metadata=who(globex)),
                 knowledge.DeleteDocument(pb.DocumentRequest(document=document), timeout=5, metadata=who(globex))):  # fmt: skip
        assert (await refusal(call)).code() is grpc.StatusCode.NOT_FOUND

    await knowledge.DeleteDocument(pb.DocumentRequest(document=document), timeout=5, metadata=who(acme))
    gone = await memory.Search(pb.SearchRequest(query="invoice"), timeout=5, metadata=who(acme))
    assert list(gone.passages) == []


async def test_who_calls_and_by_when(channel: grpc.aio.Channel, acme: Caller) -> None:
    memory, question = pb_grpc.MemoryServiceStub(channel), pb.SearchRequest(query="x")
    code = grpc.StatusCode
    assert (await refusal(memory.Search(question, timeout=5))).code() is code.UNAUTHENTICATED
    forged = ((HEADER, sign(acme.principal, b"another key")),)
    assert (await refusal(memory.Search(question, timeout=5, metadata=forged))).code() is code.UNAUTHENTICATED
    nothing = acme.colleague(scopes=frozenset())
    refused = await refusal(memory.Search(question, timeout=5, metadata=who(nothing)))
    assert refused.code() is code.PERMISSION_DENIED
    late = await refusal(memory.Search(question, timeout=60, metadata=who(acme)))
    assert late.code() is code.INVALID_ARGUMENT
    assert "at most 10 s" in (late.details() or "")
    other = pb.SearchRequest(query="x", user="usr_other")
    assert (
        await refusal(memory.Search(other, timeout=5, metadata=who(acme)))
    ).code() is code.PERMISSION_DENIED
    for bad in (pb.SearchRequest(query=""), pb.SearchRequest(query="x", mode="magic"),
                pb.SearchRequest(query="x", top_k=51)):  # fmt: skip
        answer = await refusal(memory.Search(bad, timeout=5, metadata=who(acme)))
        assert answer.code() is code.INVALID_ARGUMENT


async def test_health(channel: grpc.aio.Channel) -> None:
    health = health_pb2_grpc.HealthStub(channel)
    for name in ("", "memory.v1.MemoryService", "memory.v1.KnowledgeService"):
        answer = await health.Check(health_pb2.HealthCheckRequest(service=name), timeout=5)
        assert answer.status == health_pb2.HealthCheckResponse.SERVING
