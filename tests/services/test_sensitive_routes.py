"""Every route that may change something is registered as sensitive or excused, and what is registered exists."""

import ast
import importlib
import pkgutil
from collections import defaultdict
from pathlib import Path

from fastapi import APIRouter
from fastapi.routing import APIRoute

import assets.slices
import core.invoices
import core.prices
import deploy.cli
import services
from core.security.sensitive import ACTIONS, EXCUSED, ROUTES

HARMLESS = {"GET", "HEAD", "OPTIONS"}
KERNEL = [
    *(("billing", Path(module.__path__[0])) for module in (core.invoices, core.prices)),
    ("dagster", Path(assets.slices.__path__[0])),
    ("command", Path(deploy.cli.__path__[0])),
]
"""What a service does through the kernel, because Dagster or the command line does it too."""


def changing_routes() -> set[tuple[str, str]]:
    """(method, path) of every FastAPI route of every service that may change something."""
    found = set()
    for module in pkgutil.walk_packages(services.__path__, "services."):
        if not module.name.endswith("routes"):
            continue
        router = getattr(importlib.import_module(module.name), "router", None)
        if isinstance(router, APIRouter):
            found |= {
                (method, route.path)
                for route in router.routes
                if isinstance(route, APIRoute)
                for method in (route.methods or set()) - HARMLESS
            }
    return found


def recorded_actions() -> dict[str, set[str]]:
    """Registered actions whose name stands as text in a service's code, by service."""
    found = defaultdict(set)
    folders = [folder for folder in Path(services.__path__[0]).iterdir() if folder.is_dir()]
    for name, folder in [(folder.name, folder) for folder in folders] + KERNEL:
        for file in folder.rglob("*.py"):
            for node in ast.walk(ast.parse(file.read_text())):
                if isinstance(node, ast.Constant) and node.value in ACTIONS:
                    found[name].add(str(node.value))
    return found


def test_no_changing_route_is_forgotten() -> None:
    registered = {(route.method, route.path) for route in ROUTES}
    existing = changing_routes()
    assert len(existing) > 5
    assert registered.isdisjoint(EXCUSED)
    assert existing == registered | EXCUSED.keys()


def test_every_sensitive_route_has_a_registered_action() -> None:
    assert {route.action for route in ROUTES} <= ACTIONS.keys()


def test_every_action_is_recorded_by_its_service() -> None:
    recorded = recorded_actions()
    assert {name: name in recorded[action.service] for name, action in ACTIONS.items()} == dict.fromkeys(
        ACTIONS, True
    )
