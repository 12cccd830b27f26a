"""`Idempotency-Key` on HTTP: the same request again gets the first answer and changes nothing.

    async with database.writer() as connection:
        return await once(connection, repeatable, lambda: self._create(connection, …))

Only successes are kept: a request that was refused has left nothing and may be sent again.
"""

from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from functools import partial
from typing import Annotated, Any, Final

import orjson
from fastapi import Depends, Header, Request
from sqlalchemy.ext.asyncio import AsyncConnection
from starlette.responses import Response

from core.messaging.idempotency import IdempotencyError, Replay, begin
from services.common import errors
from services.common.errors import Problem

HEADER: Final = "idempotency-key"
REPLAYED: Final = "idempotent-replayed"


@dataclass(frozen=True, slots=True)
class Repeatable:
    """What makes two requests one: the key, and who sent what where."""

    key: str | None
    """The header's value; None where it was not sent."""
    scope: str
    content: bytes

    @classmethod
    def of(cls, request: Request, subject: str, content: bytes) -> "Repeatable":
        """The caller's request with its body, or with what was read from it.

        Raises:
            Problem: 400 where the header came twice.
        """
        values = request.headers.getlist(HEADER)
        if len(values) > 1:
            raise Problem(
                400, "idempotency_key_invalid", "Idempotency-Key refused", "Send one Idempotency-Key header."
            )
        return cls(values[0] if values else None, f"{subject} {request.method} {request.url.path}", content)


@dataclass(frozen=True, slots=True)
class Answer:
    """What a handler answers. `on_repeat` takes its place in a replay, where `content` shows a secret."""

    status: int
    content: Any
    on_repeat: Problem | None = None


async def _repeatable(
    request: Request,
    _: Annotated[
        str | None,
        Header(
            alias="Idempotency-Key",
            description="1 to 255 printable ASCII characters. The same key with the same request within 24 "
            "hours takes effect once; the repetition gets the first answer.",
        ),
    ] = None,
) -> Callable[[str, bytes], Repeatable]:
    return partial(Repeatable.of, request)


RepeatableOf = Annotated[Callable[[str, bytes], Repeatable], Depends(_repeatable)]
"""Parameter of a route that honours the header: `repeatable(principal.subject, body bytes)`."""


async def once(
    connection: AsyncConnection, request: Repeatable, work: Callable[[], Awaitable[Answer]]
) -> Response:
    """Do `work` in the caller's transaction, unless this request has been answered before.

    Raises:
        Problem: 400 `idempotency_key_invalid`, 409 `idempotency_in_progress`,
            422 `idempotency_key_reused`; whatever `work` raises.
    """
    if request.key is None:
        return _response(await work())
    try:
        claim = await begin(connection, scope=request.scope, key=request.key, request=request.content)
    except IdempotencyError as error:
        raise Problem(error.status, error.code, "Idempotency-Key refused", str(error)) from None
    if isinstance(claim, Replay):
        media_type = errors.MEDIA_TYPE if claim.status >= 400 else "application/json"
        return Response(claim.body, claim.status, media_type=media_type, headers={REPLAYED: "true"})
    answer = await work()
    if answer.on_repeat is None:
        await claim.finish(connection, answer.status, orjson.dumps(answer.content))
    else:
        await claim.finish(connection, answer.on_repeat.status, answer.on_repeat.body())
    return _response(answer)


def _response(answer: Answer) -> Response:
    headers = {} if answer.on_repeat is None else {"cache-control": "no-store"}
    return Response(
        orjson.dumps(answer.content), answer.status, media_type="application/json", headers=headers
    )
