"""Pages of money: the draft, what was issued, and of each line how its amount comes about."""

import re
from typing import Final

from starlette.responses import Response

from services.web.api import segment
from services.web.pages import page
from services.web.person import Person
from services.web.routing import listed, routes

_INVOICES: Final = "/api/v1/billing/invoices"
_NUMBER: Final = re.compile(r"INV-\d{6,18}", re.ASCII)


async def draft(person: Person) -> Response:
    """All usage that is not invoiced, and what was issued before."""
    found = await person.call("GET", f"{_INVOICES}/draft")
    issued = await person.call("GET", _INVOICES, params={"limit": "100"})
    return page(person, "invoice.html", invoice=found, issued=listed(issued))


async def show(person: Person) -> Response:
    return page(person, "issued.html", invoice=await person.call("GET", _path(person)))


async def sheet(person: Person) -> Response:
    """The same as a table for spreadsheets."""
    number = person.request.path_params["number"]
    content = await person.call("GET", f"{_path(person)}.csv")
    name = number if _NUMBER.fullmatch(number) else "invoice"
    headers = {"content-disposition": f'attachment; filename="{name}.csv"'}
    return Response(content, media_type="text/csv", headers=headers)


def _path(person: Person) -> str:
    return f"{_INVOICES}/{segment(person.request.path_params['number'])}"


ROUTES: Final = routes(
    [
        ("GET", "/invoice", draft),
        ("GET", "/invoices/{number}.csv", sheet),
        ("GET", "/invoices/{number}", show),
    ]
)
