"""What the Dagster web server of an installation says, over its GraphQL on loopback. Standard library only."""

import json
import urllib.request
from collections.abc import Mapping
from typing import Any

LOCATION = """
{ workspaceOrError {
    ... on Workspace { locationEntries { name loadStatus locationOrLoadError {
        __typename ... on PythonError { message causes { message } } } } }
    ... on PythonError { message } } }
"""


class DagsterWebError(Exception):
    """The web server did not answer, or answered with an error of its own."""


def ask(port: int, query: str, *, seconds: float = 10, **variables: object) -> Mapping[str, Any]:
    """The `data` of the answer. Raises: DagsterWebError."""
    request = urllib.request.Request(
        f"http://127.0.0.1:{port}/graphql",
        data=json.dumps({"query": query, "variables": variables}).encode(),
        headers={"content-type": "application/json"},
    )
    try:
        with urllib.request.urlopen(request, timeout=seconds) as response:  # noqa: S310 - loopback, http
            answer = json.load(response)
    except (OSError, ValueError) as error:
        raise DagsterWebError(f"Dagster's web server on port {port} gave no answer: {error}") from None
    if not isinstance(answer, dict) or answer.get("errors") or not isinstance(answer.get("data"), dict):
        raise DagsterWebError(f"Dagster's web server on port {port} refused a query: {str(answer)[:300]}")
    data: Mapping[str, Any] = answer["data"]
    return data


def location_trouble(port: int, *, seconds: float = 2) -> str | None:
    """Why our code is not loaded, in one line; None where every code location is.

    `loadStatus` alone would not do: Dagster calls a location LOADED whose import failed.

    Raises:
        DagsterWebError: where the web server does not answer.
    """
    workspace = ask(port, LOCATION, seconds=seconds)["workspaceOrError"]
    if "locationEntries" not in workspace:
        return first_line(workspace.get("message"))
    for entry in workspace["locationEntries"]:
        loaded = entry["locationOrLoadError"] or {}
        if entry["loadStatus"] != "LOADED" or not loaded:
            return f"code location {entry['name']} is still loading"
        if loaded["__typename"] != "RepositoryLocation":
            return f"code location {entry['name']} does not load: {cause(loaded)}"
    return None if workspace["locationEntries"] else "there is no code location yet"


def cause(error: Mapping[str, Any] | None) -> str:
    """First line of what was raised first: Dagster wraps it in errors of its own."""
    causes = (error or {}).get("causes") or []
    return first_line(causes[-1]["message"] if causes else (error or {}).get("message"))


def first_line(message: object) -> str:
    """The first line that says something, shortened."""
    lines = [line.strip() for line in str(message or "").splitlines() if line.strip()]
    return lines[0][:300] if lines else "no reason was given"
