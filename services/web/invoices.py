"""Pages of money: the draft, what was issued, and of each line how its amount comes about."""

import re
from typing import Final

from starlette.responses import Response

from services.web.api import ApiError, segment
from services.web.pages import page
from services.web.person import Person
from services.web.routing import behind, listed, routes, window

_INVOICES: Final = "/api/v1/billing/invoices"
_NUMBER: Final = re.compile(r"INV-\d{6,18}", re.ASCII)


async def draft(person: Person) -> Response:
    """All usage that is not invoiced, and what was issued before."""
    found = await person.call("GET", f"{_INVOICES}/draft")
    issued = await person.call("GET", _INVOICES, params=window(person, 100))
    return page(person, "invoice.html", invoice=found, issued=listed(issued), after=behind(issued))


async def show(person: Person) -> Response:
    return page(person, "issued.html", invoice=await person.call("GET", _path(person)))


async def sheet(person: Person) -> Response:
    """The same as a table for spreadsheets."""
    number = person.request.path_params["number"]
    content = await person.call("GET", f"{_path(person)}.csv")
    name = number if _NUMBER.fullmatch(number) else "invoice"
    headers = {"content-disposition": f'attachment; filename="{name}.csv"'}
    return Response(content, media_type="text/csv", headers=headers)


async def line(person: Person) -> Response:
    """The events that a line charges, and whether they come to its amount."""
    number = segment(person.request.path_params["line"])
    path = f"{_path(person)}/lines/{number}/events"
    found = await person.call("GET", path, params=window(person, 100))
    return page(
        person, "line.html", line=found["line"], proof=found["proof"], events=found["data"],
        after=behind(found),
    )  # fmt: skip


async def reconciliation(person: Person) -> Response:
    """A month from its records to what is charged for it, as a table for spreadsheets."""
    month = segment(person.request.path_params["month"])
    content = await person.call("GET", f"/api/v1/billing/reconciliation/{month}.csv")
    headers = {"content-disposition": 'attachment; filename="reconciliation.csv"'}
    return Response(content, media_type="text/csv", headers=headers)


async def trace(person: Person) -> Response:
    """What became of one event."""
    query = person.request.query_params
    source, event_id = query.get("source", "")[:256], query.get("id", "")[:256]
    found, unknown = None, False
    if source and event_id:
        try:
            found = await person.call("GET", "/api/v1/usage/trace", params={"source": source, "id": event_id})
        except ApiError as error:
            if error.status != 404:
                raise
            unknown = True
    return page(person, "trace.html", source=source, id=event_id, found=found, unknown=unknown)


def _path(person: Person) -> str:
    return f"{_INVOICES}/{segment(person.request.path_params['number'])}"


ROUTES: Final = routes(
    [
        ("GET", "/invoice", draft),
        ("GET", "/trace", trace),
        ("GET", "/reconciliation/{month}.csv", reconciliation),
        ("GET", "/invoices/{number}/lines/{line}", line),
        ("GET", "/invoices/{number}.csv", sheet),
        ("GET", "/invoices/{number}", show),
    ]
)
