"""Query parameters that no route declares are refused: a mistyped filter would otherwise answer with everything."""

from collections.abc import Iterator
from typing import Any, Final

from fastapi import Request
from fastapi.dependencies.models import Dependant
from fastapi.routing import APIRoute

from services.common.errors import Problem

_PREFIX: Final = "/api/"
"""`/v1` takes what OpenAI's clients send; what else a service serves is read by machines."""
_MOST: Final = 10
"""Faults told of one request, and characters of a name told: an answer must not grow with the query."""
_NAME: Final = 64


async def refuse_unknown(request: Request) -> None:
    """Dependency of a whole app: 422 `unknown_parameter` for what the route below `/api/` does not declare.

    Raises:
        Problem: names up to ten unknown parameters, and the ones that the route knows.
    """
    route: Any = request.scope.get("route")
    if not request.scope["query_string"] or not isinstance(route, APIRoute):
        return
    if not request.scope["path"].startswith(_PREFIX):
        return
    known = dict.fromkeys(declared(route.dependant))
    unknown = [name[:_NAME] for name in request.query_params if name not in known][:_MOST]
    if not unknown:
        return
    told = f"known here: {', '.join(known)}" if known else "this route has none"
    raise Problem(
        422,
        "unknown_parameter",
        "Unknown query parameter",
        f"No query parameter is named {', '.join(map(repr, unknown))}; {told}.",
        errors=[
            {"path": f"/query/{_pointer(name)}", "message": f"Unknown query parameter; {told}"}
            for name in unknown
        ],
    )


def declared(dependant: Dependant) -> Iterator[str]:
    """Names of the query parameters of a route and of all that it depends on, as callers write them."""
    yield from (field.alias for field in dependant.query_params)
    for below in dependant.dependencies:
        yield from declared(below)


def _pointer(name: str) -> str:
    return name.replace("~", "~0").replace("/", "~1")
