"""What routes depend on runs on the event loop: FastAPI sends a plain function to a thread, which costs a fifth of a
request and waits for other threads."""

import importlib
import inspect
import pkgutil
from collections.abc import Iterator

from fastapi import APIRouter
from fastapi.dependencies.models import Dependant
from fastapi.routing import APIRoute

import services


def routes() -> Iterator[APIRoute]:
    for found in pkgutil.walk_packages(services.__path__, "services."):
        if found.name.endswith("routes"):
            module = importlib.import_module(found.name)
            for router in (value for value in vars(module).values() if isinstance(value, APIRouter)):
                yield from (route for route in router.routes if isinstance(route, APIRoute))


def below(dependant: Dependant) -> Iterator[Dependant]:
    for each in dependant.dependencies:
        yield each
        yield from below(each)


def test_no_dependency_runs_in_a_thread() -> None:
    calls = {each.call for route in routes() for each in below(route.dependant)}
    assert len(calls) > 20
    # Classes that only hold a query are left: their routes are rarely asked.
    plain = {
        call
        for call in calls
        if inspect.isfunction(call)
        and not (inspect.iscoroutinefunction(call) or inspect.isasyncgenfunction(call))
    }
    assert plain == set()
