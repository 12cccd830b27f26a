"""Pages of documents: knowledge bases, upload, states, and the text that a citation stands in."""

from collections.abc import AsyncIterator
from typing import Any, Final

from starlette.datastructures import UploadFile
from starlette.responses import JSONResponse, Response

from services.web.api import ApiError, segment
from services.web.pages import page
from services.web.person import Person, see_other
from services.web.routing import behind, cursor, form_of, listed, message, routes, text_of, window

AROUND: Final = 2_000
"""Characters shown before and behind a quote."""
MOVING: Final = frozenset({"uploading", "queued", "parsing", "chunking", "embedding", "indexing"})
_BASES: Final = "/api/v1/knowledge-bases"
_PIECE: Final = 256 << 10


async def index(person: Person) -> Response:
    held = await person.call("GET", _BASES, params=window(person, 100, "bases"))
    bases, wanted = listed(held), person.request.query_params.get("base", "")
    base = next((one for one in bases if one["id"] == wanted), None)
    if base is None and wanted:
        # It stands on another part of the list, as a new one does behind many.
        base = await _base(person, wanted)
        bases = [base, *bases] if base else bases
    base = base or (bases[0] if bases else None)
    found = None if base is None else await _documents(person, base["id"])
    documents = listed(found) if found else []
    return page(
        person,
        "documents.html",
        bases=bases,
        bases_shown_after=cursor(person, "bases"),
        bases_after=behind(held),
        base=base,
        documents=documents,
        shown_after=cursor(person),
        after=behind(found) if found else "",
        moving=any(one["state"] in MOVING for one in documents),
    )


async def _base(person: Person, name: str) -> dict[str, Any] | None:
    """A knowledge base; None where there is none of this name."""
    try:
        found: dict[str, Any] = await person.call("GET", f"{_BASES}/{segment(name)}")
    except ApiError as error:
        if error.status not in {400, 404}:
            raise
        return None
    return found


async def states(person: Person) -> Response:
    """States of the documents that a page of a base shows, for the script that keeps the table fresh."""
    found = await _documents(person, person.request.path_params["id"])
    shown = [
        {
            "id": one["id"],
            "state": one["state"],
            "reason": (one["version"] or {}).get("reason", ""),
            "moving": one["state"] in MOVING,
        }
        for one in listed(found)
    ]
    return JSONResponse(shown)


async def create_base(person: Person) -> Response:
    form = await form_of(person)
    made = await person.call(
        "POST",
        _BASES,
        {"slug": text_of(form, "slug").strip(), "name": text_of(form, "name").strip()},
    )
    return see_other(f"/documents?base={made['id']}")


async def upload(person: Person) -> Response:
    form = await form_of(person)
    file, base = form.get("file"), segment(text_of(form, "base"))
    if not isinstance(file, UploadFile) or not file.filename:
        return see_other(f"/documents?base={base}")
    size = file.size or 0
    try:
        announced = await person.call(
            "POST",
            f"{_BASES}/{base}/documents",
            {"name": file.filename[-300:], "size": size},
        )
        await person.api.upload(announced["upload"]["url"], _pieces(file), size)
    finally:
        await form.close()
    return see_other(f"/documents?base={base}")


async def show(person: Person) -> Response:
    name = segment(person.request.path_params["id"])
    found = await person.call("GET", f"/api/v1/documents/{name}")
    versions = listed(await person.call("GET", f"/api/v1/documents/{name}/versions"))
    return page(person, "document.html", document=found, versions=versions, moving=found["state"] in MOVING)


async def act(person: Person) -> Response:
    await form_of(person)
    name, what = segment(person.request.path_params["id"]), person.request.path_params["what"]
    if what == "delete":
        found = await person.call("GET", f"/api/v1/documents/{name}")
        await person.call("DELETE", f"/api/v1/documents/{name}")
        return see_other(f"/documents?base={found['knowledge_base'] or ''}")
    if what in {"reindex", "cancel"}:
        await person.call("POST", f"/api/v1/documents/{name}/{what}")
    return see_other(f"/documents/{name}")


async def text(person: Person) -> Response:
    """The document's text around a quote, with the quote marked: the place a citation leads to."""
    name, version = segment(person.request.path_params["id"]), person.request.path_params["version"]
    query = person.request.query_params
    start, end = (_place(query.get(key, "")) for key in ("start", "end"))
    end = max(start, min(end, start + 50_000))
    first = max(0, start - AROUND)
    found = await person.call("GET", f"/api/v1/documents/{name}")
    try:
        part: dict[str, Any] = await person.call(
            "GET",
            f"/api/v1/documents/{name}/versions/{segment(version)}/text",
            params={"start": str(first), "end": str(end + AROUND)},
        )
    except ApiError as error:
        said = message(person.request, error.code, error.detail)
        return page(
            person, "source.html", error.status, document=found, version=version, part=None, error=said
        )
    words = str(part["text"])
    return page(
        person,
        "source.html",
        document=found,
        version=version,
        part={
            "start": start,
            "end": end,
            "before": words[: start - first],
            "quote": words[start - first : end - first],
            "after": words[end - first :],
            "from_start": first == 0,
        },
    )


def _place(text_: str) -> int:
    return int(text_) if text_.isdecimal() and len(text_) < 12 else 0


async def _documents(person: Person, base: str) -> Any:
    path = f"{_BASES}/{segment(base)}/documents"
    return await person.call("GET", path, params=window(person, 100))


async def _pieces(file: UploadFile) -> AsyncIterator[bytes]:
    while piece := await file.read(_PIECE):
        yield piece


ROUTES: Final = routes(
    [
        ("GET", "/documents", index),
        ("POST", "/documents", upload),
        ("POST", "/bases", create_base),
        ("GET", "/bases/{id}/states", states),
        ("GET", "/documents/{id}", show),
        ("POST", "/documents/{id}/{what}", act),
        ("GET", "/documents/{id}/versions/{version}/text", text),
    ]
)
