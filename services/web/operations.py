"""Pages of what went wrong: where every record went, what was not counted, what queues gave up. For owners."""

from typing import Any, Final

from starlette.responses import Response

from services.web.api import ApiError, segment
from services.web.pages import page
from services.web.person import Person, see_other
from services.web.routing import form_of, listed, routes

_QUARANTINE: Final = "/api/v1/usage/quarantine"
_DEAD: Final = "/api/v1/dead-letters"


async def operations(person: Person) -> Response:
    fates = await person.call("GET", "/api/v1/billing/invariants")
    held = await person.call("GET", _QUARANTINE, params={"state": "open", "limit": "50"})
    return page(
        person,
        "operations.html",
        fates=fates,
        records=listed(held),
        more_records=held["has_more"],
        dead=await _dead_letters(person),
    )


async def _dead_letters(person: Person) -> list[dict[str, Any]] | None:
    """None for who may not see them, or while the queue is away: the rest of the page needs neither."""
    try:
        return listed(await person.call("GET", _DEAD, params={"limit": "100"}))
    except ApiError as error:
        if error.status not in {403, 503}:
            raise
        return None


async def record(person: Person) -> Response:
    """One record that was not counted, beside what was counted in its place."""
    found = await person.call("GET", _of(_QUARANTINE, person))
    mine, theirs = _said(found["version"]), _said(found["counted"])
    said = [(word, mine.get(word, ""), theirs.get(word, "")) for word in mine | theirs]
    return page(person, "quarantined.html", record=found, said=said)


def _said(version: dict[str, Any] | None) -> dict[str, str]:
    """What a version of a record says, by our words for it; nothing for one that could not be read."""
    if version is None:
        return {}
    data = version.get("data", {})
    named = ", ".join(f"{name}={value}" for name, value in sorted(data.get("dimensions", {}).items()))
    said = {
        "period": version.get("time"), "subject": version.get("subject"), "meter": data.get("meter"),
        "quantity": data.get("quantity"), "dimensions": named,
    }  # fmt: skip
    return {word: str(value) for word, value in said.items() if value}


async def decide(person: Person) -> Response:
    await form_of(person)
    await person.call("POST", f"{_of(_QUARANTINE, person)}/{segment(person.request.path_params['what'])}")
    return see_other(f"/quarantine/{segment(person.request.path_params['id'])}")


async def settle(person: Person) -> Response:
    """Send a dead letter again, or discard it."""
    await form_of(person)
    await person.call("POST", f"{_of(_DEAD, person)}/{segment(person.request.path_params['what'])}")
    return see_other("/operations")


def _of(path: str, person: Person) -> str:
    return f"{path}/{segment(person.request.path_params['id'])}"


ROUTES: Final = routes(
    [
        ("GET", "/operations", operations),
        ("GET", "/quarantine/{id}", record),
        ("POST", "/quarantine/{id}/{what}", decide),
        ("POST", "/dead-letters/{id}/{what}", settle),
    ]
)
