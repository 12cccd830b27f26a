"""Problems as OpenAI's clients read them: everything below `/v1` that is not a success.

    {"error": {"message": "…", "type": "invalid_request_error", "param": "messages.0", "code": "…"}}

`code` is that of the problem document, except where OpenAI's own name for it is what programs test.
"""

from typing import TYPE_CHECKING, Final

import orjson

if TYPE_CHECKING:
    from services.common.errors import Problem

MEDIA_TYPE: Final = "application/json"
PREFIX: Final = "/v1"

_TYPES: Final = {
    401: "authentication_error",
    403: "permission_error",
    404: "not_found_error",
    429: "rate_limit_error",
}
_CODES: Final = {
    "unauthenticated": "invalid_api_key",
    "rate_limited": "rate_limit_exceeded",
    "tokens_limited": "rate_limit_exceeded",
}  # fmt: skip


def concerns(path: str) -> bool:
    """True for a path whose callers expect this form."""
    return path == PREFIX or path.startswith(PREFIX + "/")


def error(problem: "Problem") -> dict[str, str | None]:
    """The inner object, as it also stands in a stream that fails half way."""
    kind = _TYPES.get(problem.status) or (
        "server_error" if problem.status >= 500 else "invalid_request_error"
    )
    path = str(problem.errors[0].get("path", "")) if problem.errors else ""
    return {
        "message": problem.detail or problem.title,
        "type": kind,
        "param": path.strip("/").replace("/", ".") or None,
        "code": _CODES.get(problem.code, problem.code),
    }


def body(problem: "Problem") -> bytes:
    """The whole document."""
    return orjson.dumps({"error": error(problem)})
