"""`memory.v1` over gRPC: the same searches and documents, for agents.

The caller is the signed principal in the metadata. Every call has a deadline: without one 500 ms, and
none above 10 s. What may be tried again says when (`google.rpc.RetryInfo`).
"""

import asyncio
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from typing import Any, Final, NoReturn, TypeVar, cast

import grpc
import msgspec
from google.protobuf.any_pb2 import Any as Packed
from google.protobuf.duration_pb2 import Duration
from grpc_health.v1 import health_pb2, health_pb2_grpc
from grpc_health.v1._async import HealthServicer
from grpc_reflection.v1alpha import reflection
from opentelemetry import context as contexts
from opentelemetry import trace
from prometheus_client import Histogram

from core.contracts.memory import memory_pb2 as pb
from core.contracts.memory import memory_pb2_grpc as pb_grpc
from core.ids import is_id
from core.messaging.trace import trace_context
from core.vectors import LexicalUnsupportedError, ModelMismatchError, VectorsUnavailableError
from services.common.errors import Problem, from_exception, not_found, unavailable
from services.common.principal import HEADER, Principal, PrincipalError, verify
from services.memory import schemas
from services.memory.documents import Documents, own_tenant
from services.memory.handlers import shown
from services.memory.search import BusyError, Passage, Question, Search
from services.memory.texts import Texts

DEFAULT_SECONDS: Final = 0.5
MAX_SECONDS: Final = 10.0
_SLACK: Final = 0.25
"""A client's clock and ours."""
MAX_MESSAGE: Final = 4 << 20
STOP_SECONDS: Final = 5.0

DURATION: Final = Histogram(
    "grpc_request_duration_seconds",
    "Time of a gRPC call",
    ("method", "code"),
    buckets=(0.005, 0.01, 0.025, 0.05, 0.08, 0.1, 0.25, 0.5, 1, 2.5, 5, 10),
)
_TRACER: Final = trace.get_tracer("headrace.memory")
_CODES: Final = {
    400: grpc.StatusCode.INVALID_ARGUMENT,
    401: grpc.StatusCode.UNAUTHENTICATED,
    403: grpc.StatusCode.PERMISSION_DENIED,
    404: grpc.StatusCode.NOT_FOUND,
    409: grpc.StatusCode.FAILED_PRECONDITION,
    422: grpc.StatusCode.INVALID_ARGUMENT,
    429: grpc.StatusCode.RESOURCE_EXHAUSTED,
    503: grpc.StatusCode.UNAVAILABLE,
}
_T = TypeVar("_T")
_Work = Callable[[Principal], Awaitable[_T]]


class MemoryGrpc(pb_grpc.MemoryServiceServicer, pb_grpc.KnowledgeServiceServicer):  # type: ignore[misc]
    """Both services of the contract."""

    def __init__(self, search: Search, documents: Documents, texts: Texts, internal_key: bytes) -> None:
        self._search, self._documents, self._texts = search, documents, texts
        self._key = internal_key

    async def Search(self, request: pb.SearchRequest, context: Any) -> pb.SearchResponse:  # noqa: N802
        async def work(principal: Principal) -> pb.SearchResponse:
            answer = await self._search.find(_question(principal, request))
            explained = msgspec.json.encode({"degraded": answer.degraded, **(answer.explain or {})}).decode()
            return pb.SearchResponse(
                passages=[_passage(one) for one in answer.passages],
                explain=explained if request.explain else "",
            )

        return await self._guarded("Search", context, "memory:read", work)

    async def Retrieve(self, request: pb.RetrieveRequest, context: Any) -> pb.RetrieveResponse:  # noqa: N802
        async def work(principal: Principal) -> pb.RetrieveResponse:
            text = await self._texts.slice(
                principal, _known_shape(request.document), request.version, request.start, request.end
            )
            return pb.RetrieveResponse(text=text)

        return await self._guarded("Retrieve", context, "memory:read", work)

    async def GetDocumentStatus(self, request: pb.DocumentRequest, context: Any) -> pb.DocumentStatus:  # noqa: N802
        async def work(principal: Principal) -> pb.DocumentStatus:
            document, versions = await self._documents.find(principal, _known_shape(request.document))
            newest = versions[0] if versions else None
            return pb.DocumentStatus(
                document=document.id,
                state=newest.state if newest else "uploading",
                live_version=document.live_version or 0,
                reason=newest.reason if newest else "",
            )

        return await self._guarded("GetDocumentStatus", context, "memory:read", work)

    async def DeleteDocument(self, request: pb.DocumentRequest, context: Any) -> pb.DocumentStatus:  # noqa: N802
        async def work(principal: Principal) -> pb.DocumentStatus:
            await self._documents.delete(principal, _known_shape(request.document))
            return pb.DocumentStatus(document=request.document, state="deleted")

        return await self._guarded("DeleteDocument", context, "memory:write", work)

    async def _guarded(self, method: str, context: Any, scope: str, work: _Work[_T]) -> _T:
        """Who calls, may they, and by when; then the work, and its errors as statuses."""
        began = time.perf_counter()
        metadata = [(name, _bytes(value)) for name, value in context.invocation_metadata() or ()]
        span = _TRACER.start_span(
            f"memory.v1/{method}", context=trace_context(metadata), kind=trace.SpanKind.SERVER
        )
        attached = contexts.attach(trace.set_span_in_context(span))
        code = grpc.StatusCode.CANCELLED
        try:
            answer = await self._bounded(context, metadata, scope, work)
            code = grpc.StatusCode.OK
            return answer
        except _Refused as refused:
            code = refused.code
            await _abort(context, refused)
        finally:
            contexts.detach(attached)
            span.end()
            DURATION.labels(method, code.name).observe(time.perf_counter() - began)

    async def _bounded(
        self, context: Any, metadata: list[tuple[str, bytes]], scope: str, work: _Work[_T]
    ) -> _T:
        remaining = context.time_remaining()
        seconds = DEFAULT_SECONDS if remaining is None else float(remaining)
        if seconds > MAX_SECONDS + _SLACK:
            raise _Refused(
                grpc.StatusCode.INVALID_ARGUMENT, f"give a deadline of at most {MAX_SECONDS:.0f} s"
            )
        principal = self._caller(metadata)
        if not principal.may(scope):
            raise _Refused(grpc.StatusCode.PERMISSION_DENIED, f"this needs the scope {scope}")
        try:
            async with asyncio.timeout(seconds):
                return await work(principal)
        except TimeoutError:
            raise _Refused(grpc.StatusCode.DEADLINE_EXCEEDED, f"not done within {seconds:.1f} s") from None
        except BusyError as error:
            raise _Refused(grpc.StatusCode.RESOURCE_EXHAUSTED, str(error), retry=0.2) from None
        except VectorsUnavailableError:
            raise _refused(unavailable("The vector store")) from None
        except LexicalUnsupportedError as error:
            raise _Refused(grpc.StatusCode.UNIMPLEMENTED, str(error)) from None
        except ModelMismatchError as error:
            raise _Refused(grpc.StatusCode.FAILED_PRECONDITION, str(error)) from None
        except Exception as error:
            raise _refused(from_exception(error)) from None

    def _caller(self, metadata: list[tuple[str, bytes]]) -> Principal:
        values = [value for name, value in metadata if name == HEADER]
        try:
            if len(values) != 1:
                raise PrincipalError(f"send one {HEADER} in the metadata")
            return verify(values[0].decode("ascii"), self._key)
        except (PrincipalError, UnicodeDecodeError) as error:
            raise _Refused(grpc.StatusCode.UNAUTHENTICATED, str(error)) from None


class _Refused(Exception):  # noqa: N818 - a status on its way out
    def __init__(self, code: grpc.StatusCode, message: str, retry: float | None = None) -> None:
        super().__init__(message)
        self.code, self.message, self.retry = code, message, retry


def _refused(problem: Problem) -> _Refused:
    code = _CODES.get(problem.status, grpc.StatusCode.INTERNAL)
    wait = problem.headers.get("retry-after")
    retry = float(wait) if wait else 1.0 if problem.status in {429, 503} else None
    return _Refused(code, f"{problem.code}: {problem.detail or problem.title}", retry)


async def _abort(context: Any, refused: _Refused) -> NoReturn:
    trailing: tuple[tuple[str, bytes], ...] = ()
    if refused.retry is not None:
        trailing = (("grpc-status-details-bin", _details(refused)),)
    await context.abort(refused.code, refused.message, trailing)
    raise AssertionError("unreachable")


def _details(refused: _Refused) -> bytes:
    """`google.rpc.Status` with one `RetryInfo`, written by hand: the package that has them brings nothing else."""
    seconds, nanos = divmod(int((refused.retry or 0) * 1_000_000_000), 1_000_000_000)
    duration: bytes = Duration(seconds=seconds, nanos=nanos).SerializeToString()
    retry_info = b"\x0a" + _length(duration) + duration
    packed: bytes = Packed(
        type_url="type.googleapis.com/google.rpc.RetryInfo", value=retry_info
    ).SerializeToString()
    message = refused.message.encode()
    number: int = refused.code.value[0]
    return bytes((0x08, number)) + b"\x12" + _length(message) + message + b"\x1a" + _length(packed) + packed


def _length(data: bytes) -> bytes:
    size, found = len(data), bytearray()
    while size > 0x7F:
        found.append(size & 0x7F | 0x80)
        size >>= 7
    found.append(size)
    return bytes(found)


def _known_shape(document: str) -> str:
    """Raises: Problem 404 for what is no id, as the paths of REST do."""
    if not is_id(document):
        raise not_found("document")
    return document


def _bytes(value: str | bytes) -> bytes:
    return value.encode("latin-1", "replace") if isinstance(value, str) else value


def _question(principal: Principal, request: pb.SearchRequest) -> Question:
    if request.user and principal.kind != "system" and request.user != principal.subject:
        raise Problem(403, "not_your_memories", "Not allowed", "Only your own memories can be searched.")
    mode = request.mode or "hybrid"
    if not 1 <= len(request.query) <= schemas.MAX_QUERY:
        raise Problem(422, "query_invalid", "No such query", f"Give 1 to {schemas.MAX_QUERY} characters.")
    if mode not in {"dense", "lexical", "hybrid"}:
        raise Problem(422, "mode_invalid", "No such mode", "Use dense, lexical or hybrid.")
    if request.top_k > schemas.MAX_TOP_K:
        raise Problem(422, "top_k_invalid", "Too many", f"Ask for at most {schemas.MAX_TOP_K}.")
    return Question(
        tenant=own_tenant(principal),
        query=request.query,
        top_k=request.top_k or schemas.DEFAULT_TOP_K,
        mode=cast(schemas.Mode, mode),
        knowledge_bases=list(request.knowledge_bases) or None,
        user=request.user,
        explain=request.explain,
    )


def _passage(passage: Passage) -> pb.Passage:
    values = {**shown(passage)}
    for name in ("knowledge_base", "page", "dense_score", "lexical_score"):
        if values[name] is None:
            del values[name]
    return pb.Passage(**values)


@asynccontextmanager
async def serving(servicer: MemoryGrpc, address: str) -> AsyncIterator[None]:
    """The gRPC server at `host:port`, with health and reflection.

    Raises:
        RuntimeError: the address cannot be bound.
    """
    server = grpc.aio.server(
        options=(
            ("grpc.max_receive_message_length", MAX_MESSAGE),
            ("grpc.max_send_message_length", MAX_MESSAGE),
            ("grpc.keepalive_time_ms", 30_000),
            ("grpc.http2.min_recv_ping_interval_without_data_ms", 10_000),
            ("grpc.keepalive_permit_without_calls", 1),
            # Two processes on one port would share the calls between them silently.
            ("grpc.so_reuseport", 0),
        )
    )
    health = HealthServicer()
    pb_grpc.add_MemoryServiceServicer_to_server(servicer, server)
    pb_grpc.add_KnowledgeServiceServicer_to_server(servicer, server)
    health_pb2_grpc.add_HealthServicer_to_server(health, server)
    services = [
        pb.DESCRIPTOR.services_by_name[name].full_name for name in ("MemoryService", "KnowledgeService")
    ]
    reflection.enable_server_reflection(
        [*services, health_pb2.DESCRIPTOR.services_by_name["Health"].full_name, reflection.SERVICE_NAME],
        server,
    )
    server.add_insecure_port(address)
    await server.start()
    for name in ("", *services):
        await health.set(name, health_pb2.HealthCheckResponse.SERVING)
    try:
        yield
    finally:
        await health.enter_graceful_shutdown()
        await server.stop(STOP_SECONDS)
