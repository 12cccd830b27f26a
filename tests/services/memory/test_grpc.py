"""`memory.v1`: the same searches for agents, with deadlines, signed callers and honest statuses."""

from collections.abc import AsyncIterator, Iterator
from contextlib import contextmanager
from typing import Any
from urllib.parse import urlsplit

import grpc
import pytest
from google.protobuf.any_pb2 import Any as Packed
from google.protobuf.duration_pb2 import Duration
from grpc_health.v1 import health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha import reflection_pb2, reflection_pb2_grpc

from core.contracts.memory import memory_pb2 as pb
from core.contracts.memory import memory_pb2_grpc as pb_grpc
from services.common.principal import HEADER, sign
from services.memory.search import IN_FLIGHT
from tests.servers import listener
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


async def test_what_is_no_id_names_no_document(channel: grpc.aio.Channel, acme: Caller) -> None:
    knowledge = pb_grpc.KnowledgeServiceStub(channel)
    for name in ("", "terms.txt", "doc_\x00", "doc_" + "\x00" * 36, "d" * 100_000):
        named = pb.DocumentRequest(document=name)
        for call in (
            knowledge.Retrieve(pb.RetrieveRequest(document=name, version=1), timeout=5, metadata=who(acme)),
            knowledge.GetDocumentStatus(named, timeout=5, metadata=who(acme)),
            knowledge.DeleteDocument(named, timeout=5, metadata=who(acme)),
        ):
            assert (await refusal(call)).code() is grpc.StatusCode.NOT_FOUND, name[:40]


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


async def test_the_server_says_what_it_serves(channel: grpc.aio.Channel) -> None:
    """Reflection, so that tools like grpcurl need no file of the contract."""
    stub = reflection_pb2_grpc.ServerReflectionStub(channel)

    async def ask(**question: str) -> Any:
        request = reflection_pb2.ServerReflectionRequest(**question)
        async for answer in stub.ServerReflectionInfo(iter([request]), timeout=5):
            return answer
        raise AssertionError("no answer")

    listed = {one.name for one in (await ask(list_services="")).list_services_response.service}
    assert {"memory.v1.MemoryService", "memory.v1.KnowledgeService", "grpc.health.v1.Health"} <= listed
    found = await ask(file_containing_symbol="memory.v1.MemoryService")
    assert found.file_descriptor_response.file_descriptor_proto == [pb.DESCRIPTOR.serialized_pb]


async def test_a_search_ends_by_its_deadline_and_too_many_are_told_when_to_come_back(
    channel: grpc.aio.Channel, acme: Caller, platform: Platform
) -> None:
    memory, question = pb_grpc.MemoryServiceStub(channel), pb.SearchRequest(query="x", mode="dense")
    await memory.Search(question, timeout=9, metadata=who(acme))  # connected before the server stops
    with stopped(platform.vectors.vectors_url):
        late = await refusal(memory.Search(question, metadata=who(acme)))
        assert late.code() is grpc.StatusCode.DEADLINE_EXCEEDED
        assert late.details() == "not done within 0.5 s"
        calls = [memory.Search(question, timeout=2, metadata=who(acme)) for _ in range(IN_FLIGHT + 1)]
        refused = [await refusal(call) for call in calls]
    (busy,) = [one for one in refused if one.code() is not grpc.StatusCode.DEADLINE_EXCEEDED]
    assert busy.code() is grpc.StatusCode.RESOURCE_EXHAUSTED
    assert retry_after(busy) == 0.2
    answer = await memory.Search(question, timeout=9, metadata=who(acme))
    assert list(answer.passages) == []


@contextmanager
def stopped(url: str) -> Iterator[None]:
    """The vector server takes connections and answers nothing."""
    server = listener(urlsplit(url).port or 0)
    server.suspend()
    try:
        yield
    finally:
        server.resume()


def retry_after(error: grpc.aio.AioRpcError) -> float:
    """Seconds of the `google.rpc.RetryInfo` in `google.rpc.Status` (fields 1 code, 2 message, 3 details)."""
    (details,) = [value for name, value in error.trailing_metadata() if name == "grpc-status-details-bin"]
    fields = dict(_fields(details))
    assert fields[1] == error.code().value[0]
    assert fields[2] == (error.details() or "").encode()
    packed = Packed.FromString(fields[3])
    assert packed.type_url == "type.googleapis.com/google.rpc.RetryInfo"
    delay = Duration.FromString(dict(_fields(packed.value))[1])
    return float(delay.seconds + delay.nanos / 1e9)


def _fields(message: bytes) -> Iterator[tuple[int, Any]]:
    """Number and value of each field, by protobuf's encoding (varints below 128 are one byte)."""
    at = 0
    while at < len(message):
        number, kind, at = message[at] >> 3, message[at] & 7, at + 1
        if kind == 0:
            yield number, message[at]
            at += 1
        else:
            size = message[at]
            yield number, message[at + 1 : at + 1 + size]
            at += 1 + size
