"""Errors as RFC 9457 problem details, for everything a service can answer that is not a success.

    {"type": "urn:headrace:problem:not_found", "title": "Not found", "status": 404,
     "detail": "…", "code": "not_found", "instance": "/api/v1/organizations/org_1"}

`code` is stable and what programs read; `detail` says what happened, to what, and what to do. An
unexpected exception becomes a 500 that tells nothing about the inside; the log has the rest under
the same `x-request-id`.
"""

import http
from collections.abc import Mapping, Sequence
from typing import Any, Final

import orjson
from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from redis.exceptions import RedisError
from sqlalchemy.exc import DBAPIError, InterfaceError, OperationalError
from sqlalchemy.exc import TimeoutError as PoolTimeoutError
from starlette.exceptions import HTTPException
from starlette.responses import Response

from core.eventlog.api import LogUnavailableError
from core.log import Logger
from core.objects.api import ObjectStoreUnavailableError
from core.queue.api import QueueUnavailableError
from services.common import openai_errors

MEDIA_TYPE: Final = "application/problem+json"
_CODES: Final = {404: "not_found", 405: "method_not_allowed", 413: "body_too_large"}
_AWAY: Final[tuple[tuple[type[Exception], str, bool], ...]] = (
    (RedisError, "The cache", True),
    (LogUnavailableError, "The event log", True),
    (QueueUnavailableError, "The work queue", False),
    (ObjectStoreUnavailableError, "The object store", False),
)
"""What a seam raises while its server is away, and whether that leaves everything as it was."""
_LOG = Logger("services.errors")


class Problem(Exception):  # noqa: N818 - the RFC's name for it
    """An answer other than success. Raise it anywhere below a route.

    Args:
        status: HTTP status, 400 to 599.
        code: stable name for programs, snake_case.
        title: short, the same for each occurrence of this code.
        detail: this occurrence: what happened, to what, what to do. Never secrets, never internals.
        errors: for several faults in one request: `{"path": JSON pointer, "message": …}` each.
        headers: extra headers, such as `Retry-After`.
    """

    def __init__(
        self,
        status: int,
        code: str,
        title: str,
        detail: str = "",
        *,
        errors: Sequence[Mapping[str, Any]] = (),
        headers: Mapping[str, str] | None = None,
    ) -> None:
        super().__init__(f"{status} {code}: {detail or title}")
        self.status = status
        self.code = code
        self.title = title
        self.detail = detail
        self.errors = list(errors)
        self.headers = dict(headers or {})

    def body(self, instance: str = "") -> bytes:
        """The problem document as JSON."""
        document: dict[str, Any] = {
            "type": f"urn:headrace:problem:{self.code}",
            "title": self.title,
            "status": self.status,
            "detail": self.detail or self.title,
            "code": self.code,
        }
        if instance:
            document["instance"] = instance
        if self.errors:
            document["errors"] = self.errors
        return orjson.dumps(document)


def not_found(what: str = "resource") -> Problem:
    """404: the thing does not exist, or belongs to somebody else, which looks the same."""
    return Problem(404, "not_found", "Not found", f"There is no such {what} that you may see.")


def invalid(path: str, message: str, *, code: str = "invalid_request") -> Problem:
    """422 for one field, named by its JSON pointer."""
    return Problem(
        422, code, "The request is not valid", message, errors=[{"path": path, "message": message}]
    )


def unavailable(what: str, retry_after: int = 1, *, unchanged: bool = True) -> Problem:
    """503: something behind us is down or starting; try again.

    Args:
        unchanged: False where it broke in the midst of a change that may have happened.
    """
    outcome = "nothing was changed" if unchanged else "the change may have happened, so look first"
    return Problem(
        503,
        "unavailable",
        "Temporarily unavailable",
        f"{what} does not answer; {outcome}. Try again shortly.",
        headers={"retry-after": str(retry_after)},
    )


def busy(what: str, code: str, retry_after: int = 5) -> Problem:
    """503: it answers, but so much waits for it already that this would be answered too late."""
    return Problem(
        503,
        code,
        "Too much at once",
        f"{what} has as many questions waiting as it answers in time; nothing was changed. Try again in some seconds.",
        headers={"retry-after": str(retry_after)},
    )


def internal() -> Problem:
    """500 without a word about the inside."""
    return Problem(
        500,
        "internal_error",
        "Internal error",
        "The request failed on our side. Quote the x-request-id of this answer when you report it.",
    )


def from_status(status: int, headers: Mapping[str, str] | None = None) -> Problem:
    """The problem for a bare HTTP status, such as a route that does not exist."""
    try:
        phrase = http.HTTPStatus(status).phrase
    except ValueError:
        phrase = "Error"
    code = _CODES.get(status) or phrase.lower().replace(" ", "_").replace("-", "_").replace("'", "")
    details = {
        404: "No such path. The paths of this service are listed at /openapi.json.",
        405: "This path does not know the method; the Allow header lists those it knows.",
    }
    return Problem(status, code, phrase, details.get(status, ""), headers=headers)


def from_exception(error: Exception) -> Problem:
    """The problem an exception that nobody caught is answered with; logs what is unexpected."""
    if isinstance(error, Problem):
        return error
    for away, what, unchanged in _AWAY:
        if isinstance(error, away):
            _LOG.warn("a server is away", what=what, error=type(error).__name__)
            return unavailable(what, unchanged=unchanged)
    if _database_is_away(error):
        _LOG.warn("database unavailable", error=type(error).__name__)
        return unavailable("The database")
    _LOG.error("unhandled error", exc=error)
    return internal()


def _database_is_away(error: Exception) -> bool:
    """True for lost or refused connections, servers that start, stop or stand by, and transactions that
    were ended for others' sake; not for bad SQL."""
    if isinstance(error, DBAPIError):
        state = getattr(error.orig, "sqlstate", None) or ""
        if error.connection_invalidated or _passes(state):
            return True
        return isinstance(error, (OperationalError, InterfaceError)) and not state
    state = getattr(error, "sqlstate", None)
    if isinstance(state, str):
        return _passes(state)
    return isinstance(error, (PoolTimeoutError, ConnectionError))


def _passes(state: str) -> bool:
    """True for what ends a transaction without its fault: no connection, no room, a deadlock, a time-out."""
    return state[:2] in {"08", "40", "53"} or state[:3] == "57P" or state == "57014"


def document(problem: Problem, path: str = "") -> tuple[bytes, str]:
    """Body and media type for a request to `path`: OpenAI's envelope below `/v1`, else a problem document."""
    if openai_errors.concerns(path):
        return openai_errors.body(problem), openai_errors.MEDIA_TYPE
    return problem.body(path), MEDIA_TYPE


def response(problem: Problem, instance: str = "") -> Response:
    body, media_type = document(problem, instance)
    return Response(body, status_code=problem.status, media_type=media_type, headers=problem.headers)


def install(app: FastAPI) -> None:
    """Make every error of `app` a problem document."""

    async def on_problem(request: Request, error: Exception) -> Response:
        return response(from_exception(error), instance_of(request))

    async def on_http(request: Request, error: Exception) -> Response:
        if not isinstance(error, HTTPException):
            raise TypeError("registered for HTTPException")
        return response(from_status(error.status_code, error.headers), instance_of(request))

    async def on_validation(request: Request, error: Exception) -> Response:
        if not isinstance(error, RequestValidationError):
            raise TypeError("registered for RequestValidationError")
        errors = [
            {"path": "/" + "/".join(str(part) for part in item["loc"]), "message": item["msg"]}
            for item in error.errors()
        ]
        first = errors[0]["message"] if errors else ""
        problem = Problem(422, "invalid_request", "The request is not valid", first, errors=errors)
        return response(problem, instance_of(request))

    app.add_exception_handler(Problem, on_problem)
    app.add_exception_handler(HTTPException, on_http)
    app.add_exception_handler(RequestValidationError, on_validation)


def instance_of(request: Request) -> str:
    raw: bytes = request.scope.get("raw_path") or b""
    return raw.decode("ascii", "replace")
