"""HTTP of `local-extractive`, in the shapes of the OpenAI API."""

from typing import Any

from fastapi import APIRouter, Request
from starlette.responses import JSONResponse, Response, StreamingResponse

from services.common.body import documented, parsed, read
from services.common.errors import Problem
from services.extractive import chat, embeddings, responses, schemas
from services.extractive.answer import DESCRIPTION, MODEL, Reply, reply

MAX_BYTES = 16 << 20

router = APIRouter()

_MODELS: dict[str, dict[str, Any]] = {
    id: {"id": id, "object": "model", "created": 0, "owned_by": "headrace", "description": description}
    for id, description in ((MODEL, DESCRIPTION), (embeddings.MODEL, embeddings.DESCRIPTION))
}
_STREAM = {"cache-control": "no-store", "x-accel-buffering": "no"}


@router.get("/v1/models", tags=["openai"])
async def models() -> JSONResponse:
    """The one that answers and the one that makes vectors."""
    return JSONResponse({"object": "list", "data": [*_MODELS.values()]})


@router.get("/v1/models/{model}", tags=["openai"])
async def model(model: str) -> JSONResponse:
    """What it is."""
    if model not in _MODELS:
        raise _unknown(*_MODELS)
    return JSONResponse(_MODELS[model])


@router.post("/v1/chat/completions", tags=["openai"], openapi_extra=documented(schemas.Completion))
async def chat_completions(request: Request) -> Response:
    """Answer a conversation by quoting, or call a tool; as a stream where asked for."""
    asked = schemas.completion(await parsed(await read(request, max_bytes=MAX_BYTES), max_bytes=MAX_BYTES))
    answer = _answer(asked)
    if asked.stream:
        return _events(chat.stream(asked, answer, request.app.state.word_seconds))
    return JSONResponse(chat.whole(asked, answer))


@router.post("/v1/responses", tags=["openai"], openapi_extra=documented(schemas.ResponseRequest))
async def create_response(request: Request) -> Response:
    """The same as a response; nothing is stored."""
    asked = schemas.response_request(
        await parsed(await read(request, max_bytes=MAX_BYTES), max_bytes=MAX_BYTES)
    )
    answer = _answer(asked)
    if asked.stream:
        return _events(responses.stream(asked, answer, request.app.state.word_seconds))
    return JSONResponse(responses.whole(asked, answer))


@router.post("/v1/embeddings", tags=["openai"], openapi_extra=documented(schemas.EmbeddingRequest))
async def create_embeddings(request: Request) -> Response:
    """Vectors of texts, as floats or in base64."""
    found: embeddings.Embeddings = request.app.state.embeddings
    asked = schemas.embedding_request(
        await parsed(await read(request, max_bytes=MAX_BYTES), max_bytes=MAX_BYTES), found.dimensions
    )
    if asked.model != embeddings.MODEL:
        raise _unknown(embeddings.MODEL)
    return JSONResponse(await found.answer(asked))


def _answer(asked: schemas.Completion | schemas.ResponseRequest) -> Reply:
    if asked.model != MODEL:
        raise _unknown(MODEL)
    return reply(schemas.messages_of(asked), schemas.tools_of(asked))


def _events(stream: Any) -> StreamingResponse:
    return StreamingResponse(stream, media_type="text/event-stream", headers=_STREAM)


def _unknown(*ours: str) -> Problem:
    return Problem(
        404,
        "model_not_found",
        "No such model",
        f"Ask for {' or '.join(ours)} here.",
        errors=[{"path": "/model", "message": "unknown"}],
    )
