"""The one reader of JSON bodies: strict where JSON parsers differ, so that two readers never disagree.

RFC 8259 leaves to the reader what happens to duplicate names, numbers that do not fit, lone
surrogates and depth (RFC 8259, sections 4, 6, 8.2, 9). Here all of them are refused with a 4xx and
a stable code, as are NaN, Infinity, bytes that are not UTF-8, and U+0000, which PostgreSQL's text
cannot hold. Unknown fields are a 422 in `decode`.
"""

import asyncio
import json
import math
import re
from collections.abc import Awaitable, Callable, Iterable
from itertools import accumulate
from typing import Any, Final, NoReturn, TypeVar

import msgspec
import pydantic
from fastapi import Request

from services.common.errors import Problem

MAX_BYTES: Final = 1 << 20
MAX_DEPTH: Final = 32
MAX_MARKS: Final = 2_000_000
"""Brackets, colons and commas of a body. Every value comes with one of them and takes many times its own bytes
while it is read: 32 MB of `"",` take gigabytes. Those inside of texts count as well, which keeps the count
cheap: a text with as many is longer than what a model reads.
"""

_T = TypeVar("_T")
_INT64: Final = range(-(1 << 63), 1 << 63)
# The closing quote is optional so that an unclosed string cannot make the scan quadratic.
_STRING: Final = re.compile(rb'"[^"\\]*+(?:\\.[^"\\]*+)*+"?', re.DOTALL)
_NOT_BRACKETS: Final = bytes(set(range(256)) - set(b"[]{}"))
_NOT_MARKS: Final = bytes(set(range(256)) - set(b"[]{},:"))
_STEP: Final = {ord("["): 1, ord("{"): 1, ord("]"): -1, ord("}"): -1}
_SUSPECT_ESCAPE: Final = re.compile(r"\\u(?:[dD][89a-fA-F]|0000)")
_NEVER: Final = re.compile("[\x00\ud800-\udfff]")
_MEDIA_TYPE: Final = re.compile(rb"application/(?:json|[a-z0-9.+-]+\+json)\s*(?:;.*)?", re.IGNORECASE)


def parse(body: bytes, *, max_bytes: int = MAX_BYTES) -> Any:
    """One JSON text as Python objects (dict, list, str, int, float, bool, None).

    Raises:
        Problem: 413 `body_too_large`, `too_many_values`; 400 `invalid_json`, `invalid_utf8`, `duplicate_key`,
            `number_out_of_range`, `too_deep`, `forbidden_character`.
    """
    if len(body) > max_bytes:
        raise too_large(max_bytes)
    if len(body) > MAX_MARKS and len(body.translate(None, _NOT_MARKS)) > MAX_MARKS:
        raise Problem(
            413,
            "too_many_values",
            "Body too large",
            f"The body has more than {MAX_MARKS} brackets, colons and commas; send less at a time.",
        )
    try:
        text = body.decode("utf-8")
    except UnicodeDecodeError as error:
        raise _refused("invalid_utf8", f"the body is not UTF-8 at byte {error.start}") from None
    if _depth(body) > MAX_DEPTH:
        raise _refused("too_deep", f"the body is nested deeper than {MAX_DEPTH} levels")
    try:
        value = _DECODER.decode(text)
    except json.JSONDecodeError as error:
        raise _refused("invalid_json", f"{error.msg} at character {error.pos}") from None
    if _SUSPECT_ESCAPE.search(text):
        _refuse_unstorable(value)
    return value


async def parsed(body: bytes, *, max_bytes: int = MAX_BYTES) -> Any:
    """As `parse`; a large body is read in a thread, so that others are answered meanwhile. Raises: as `parse`."""
    if len(body) <= MAX_BYTES:
        return parse(body, max_bytes=max_bytes)
    return await asyncio.to_thread(parse, body, max_bytes=max_bytes)


async def read(request: Request, *, max_bytes: int = MAX_BYTES) -> bytes:
    """The whole body, never more of it in memory than `max_bytes` and one chunk.

    Raises:
        Problem: 413 `body_too_large`, 415 `unsupported_media_type`.
    """
    content_type = next((value for name, value in request.scope["headers"] if name == b"content-type"), b"")
    if not _MEDIA_TYPE.fullmatch(content_type.strip()):
        raise Problem(
            415,
            "unsupported_media_type",
            "Unsupported media type",
            "Send JSON with the header `Content-Type: application/json`.",
        )
    encoding = request.headers.get("content-encoding", "identity")
    if encoding.lower() != "identity":
        raise Problem(
            415,
            "unsupported_encoding",
            "Unsupported content encoding",
            "Send the body without Content-Encoding.",
        )
    declared = request.headers.get("content-length", "")
    if declared.isdecimal() and int(declared[:20]) > max_bytes:
        raise too_large(max_bytes)
    chunks: list[bytes] = []
    size = 0
    async for chunk in request.stream():
        size += len(chunk)
        if size > max_bytes:
            raise too_large(max_bytes)
        chunks.append(chunk)
    return b"".join(chunks)


def decode(value: object, shape: type[_T]) -> _T:
    """`value` as a msgspec Struct or pydantic model, without coercing types.

    msgspec is the house style (`class X(msgspec.Struct, forbid_unknown_fields=True)`): it reads
    RFC 3339 times from text. A pydantic model must set `extra="forbid"` itself.

    Raises:
        Problem: 422 `invalid_request` with the JSON pointer of each fault.
    """
    if isinstance(shape, type) and issubclass(shape, pydantic.BaseModel):
        try:
            return shape.model_validate(value, strict=True)
        except pydantic.ValidationError as error:
            raise _invalid(
                {"path": _pointer(item["loc"]), "message": item["msg"]} for item in error.errors()
            ) from None
    try:
        return msgspec.convert(value, shape, strict=True)
    except msgspec.ValidationError as error:
        message, _, path = str(error).partition(" - at `$")
        raise _invalid([{"path": _msgspec_pointer(path), "message": message}]) from None


def json_body(shape: type[_T], *, max_bytes: int = MAX_BYTES) -> Callable[[Request], Awaitable[_T]]:
    """FastAPI dependency: `body: Annotated[Login, Depends(json_body(Login))]`.

    Give the route `openapi_extra=documented(Login)`, or its page will show no body.
    """

    async def read_body(request: Request) -> _T:
        return decode(await parsed(await read(request, max_bytes=max_bytes), max_bytes=max_bytes), shape)

    return read_body


def documented(shape: Any, *, description: str = "") -> dict[str, Any]:
    """`openapi_extra` that describes a body read by `json_body`; the app hoists `x-components`."""
    template = "#/components/schemas/{name}"
    if isinstance(shape, type) and issubclass(shape, pydantic.BaseModel):
        schema = shape.model_json_schema(ref_template=template.replace("{name}", "{model}"))
        components = schema.pop("$defs", {})
    else:
        (schema,), components = msgspec.json.schema_components([shape], ref_template=template)
    media: dict[str, Any] = {"application/json": {"schema": schema}}
    return {
        "requestBody": {"required": True, "description": description, "content": media},
        "x-components": components,
    }


def too_large(max_bytes: int) -> Problem:
    return Problem(
        413,
        "body_too_large",
        "Body too large",
        f"The body is larger than {max_bytes} bytes; send less at a time.",
    )


def _depth(body: bytes) -> int:
    brackets = _STRING.sub(b"", body).translate(None, _NOT_BRACKETS)
    return max(accumulate(map(_STEP.__getitem__, brackets)), default=0)


def _object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    result = dict(pairs)
    if len(result) != len(pairs):
        raise _refused("duplicate_key", "an object has the same name twice")
    return result


def _integer(text: str) -> int:
    if len(text) > 20 or (value := int(text)) not in _INT64:
        raise _out_of_range()
    return value


def _float(text: str) -> float:
    value = float(text)
    if math.isinf(value):
        raise _out_of_range()
    return value


def _constant(name: str) -> NoReturn:
    raise _refused("invalid_json", f"{name} is not JSON")


_DECODER: Final = json.JSONDecoder(
    object_pairs_hook=_object, parse_int=_integer, parse_float=_float, parse_constant=_constant
)


def _refuse_unstorable(value: Any) -> None:
    """Escapes can spell lone surrogates and U+0000; only bodies with such escapes come here."""
    stack = [value]
    while stack:
        item = stack.pop()
        if isinstance(item, str):
            if _NEVER.search(item):
                raise _refused("forbidden_character", "a text holds U+0000 or half a surrogate pair")
        elif isinstance(item, dict):
            stack.extend(item)
            stack.extend(item.values())
        elif isinstance(item, list):
            stack.extend(item)


def _refused(code: str, detail: str) -> Problem:
    return Problem(400, code, "The body cannot be read", f"{detail[0].upper()}{detail[1:]}.")


def _out_of_range() -> Problem:
    return _refused(
        "number_out_of_range",
        "a number does not fit 64 bits; send larger or exact decimal values as text",
    )


def _invalid(errors: Iterable[dict[str, str]]) -> Problem:
    listed = list(errors)
    first = listed[0]
    where = f" (at {first['path']})" if first["path"] else ""
    return Problem(
        422, "invalid_request", "The request is not valid", f"{first['message']}{where}", errors=listed
    )


def _pointer(location: Iterable[str | int]) -> str:
    return "".join("/" + str(part).replace("~", "~0").replace("/", "~1") for part in location)


def _msgspec_pointer(path: str) -> str:
    """`.events[0].id` + backtick → `/events/0/id`; keys and values of a map are `[...]` there."""
    parts = re.findall(r"\.([^.\[\]`]+)|\[(\d+|\.\.\.)\]", path)
    return _pointer(name or index for name, index in parts)
