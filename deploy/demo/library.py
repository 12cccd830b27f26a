"""Documents of the demo: uploaded as anybody does it, and waited for until each has its fate."""

import hashlib
import time
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from deploy.client import Client
from deploy.demo.run import DemoError

ENDED: Final = frozenset({"indexed", "needs_ocr", "failed", "cancelled"})


@dataclass(frozen=True, slots=True)
class Fate:
    """What became of a file."""

    document: str
    version: int
    state: str
    reason: str


def knowledge_base(client: Client, slug: str) -> str:
    """Id of the tenant's knowledge base with this slug, made where it is missing."""
    for base in _all(client, "/api/v1/knowledge-bases"):
        if base["slug"] == slug:
            return str(base["id"])
    return str(client.post("/api/v1/knowledge-bases", {"slug": slug, "name": slug})["id"])


def upload(client: Client, base: str, files: Iterable[tuple[str, bytes]]) -> dict[str, str]:
    """File name to document id. A name that is there already gets a new version, unless it says the same."""
    known = {row["name"]: row for row in _all(client, f"/api/v1/knowledge-bases/{base}/documents")}
    documents = {}
    for name, content in files:
        digest = hashlib.sha256(content).hexdigest()
        wanted = {"size": len(content), "sha256": digest}
        row = known.get(name)
        if row is None:
            accepted = client.post(f"/api/v1/knowledge-bases/{base}/documents", {"name": name, **wanted})
        elif (row["version"] or {}).get("sha256") == digest and row["state"] in ENDED:
            documents[name] = str(row["id"])
            continue
        else:
            accepted = client.post(f"/api/v1/documents/{row['id']}/versions", wanted)
        path = accepted["upload"]["url"]
        client.call("PUT", path, content=content, headers={"content-type": "application/octet-stream"})
        documents[name] = str(accepted["document"]["id"])
    return documents


def await_fates(
    client: Client, documents: Mapping[str, str], patience: float, tick: Callable[[int], None]
) -> dict[str, Fate]:
    """Wait until every document is indexed or says why it is not.

    Raises:
        DemoError: with the names that have not ended, after `patience` seconds in which none came a stage further.
    """
    fates: dict[str, Fate] = {}
    states: dict[str, str] = {}
    deadline = time.monotonic() + patience
    while len(fates) < len(documents):
        before = dict(states)
        for name, document in documents.items():
            if name in fates:
                continue
            row = client.get(f"/api/v1/documents/{document}")
            states[name] = row["state"]
            if row["state"] in ENDED:
                version = row["version"] or {}
                fates[name] = Fate(
                    document, int(version.get("version", 0)), row["state"], str(version.get("reason") or "")
                )
        tick(len(fates))
        if states != before:
            deadline = time.monotonic() + patience
        elif time.monotonic() > deadline:
            left = sorted(set(documents) - set(fates))
            raise DemoError(
                f"{len(left)} documents came no further in {patience:.0f} s: "
                f"{', '.join(left[:5])}; see `headrace doctor`"
            )
        if len(fates) < len(documents):
            time.sleep(0.5)
    return fates


def folder(path: Path) -> list[tuple[str, bytes]]:
    """Files of a folder, by name; hidden ones are left out."""
    return [
        (file.name, file.read_bytes())
        for file in sorted(path.iterdir())
        if file.is_file() and not file.name.startswith(".")
    ]


def _all(client: Client, path: str) -> list[dict[str, Any]]:
    rows: list[dict[str, Any]] = []
    parameters: dict[str, str] = {"limit": "100"}
    while True:
        page = client.get(path, **parameters)
        rows += page["data"]
        if not page.get("has_more"):
            return rows
        parameters["after"] = page["last_id"]
