"""Pages of usage, from the sum down to the hour, and of API keys."""

import re
from datetime import timedelta
from decimal import Decimal
from typing import Any, Final

from starlette.responses import Response

from core.clock import now, rfc3339
from services.web.api import ApiError, segment
from services.web.charts import Bar, bars
from services.web.pages import number, page
from services.web.person import Person, see_other
from services.web.routing import behind, form_of, listed, message, routes, text_of, window

_DAYS: Final = 30
_METER: Final = re.compile(r"[a-z][a-z0-9_.]{0,100}", re.ASCII)
_DAY: Final = re.compile(r"\d{4}-\d\d-\d\d", re.ASCII)


async def usage(person: Person) -> Response:
    """Sums of 30 days; of one meter by day; of one day by hour."""
    query = person.request.query_params
    meter = query.get("meter", "") if _METER.fullmatch(query.get("meter", "")) else ""
    day = query.get("day", "") if _DAY.fullmatch(query.get("day", "")) else ""
    params = {"grain": "total", "from": rfc3339(now() - timedelta(days=_DAYS))}
    if meter:
        params |= {"meter": meter, "grain": "day"}
    if meter and day:
        params |= {"grain": "hour", "from": f"{day}T00:00:00Z", "to": f"{day}T23:59:59Z"}
    found = await person.call("GET", "/api/v1/usage", params=params)
    cells = listed(found)
    most = max((Decimal(one["quantity"]) for one in cells), default=Decimal(0)) or Decimal(1)
    for one in cells:
        one["share"] = float(Decimal(one["quantity"]) / most)
    unit = next((one["unit"] for one in cells if one["unit"]), "")
    picture = bars(_series(found["periods"], unit, meter, day), meter) if meter else ""
    return page(person, "usage.html", usage=found, cells=cells, meter=meter, day_=day, picture=picture)


def _series(periods: list[dict[str, Any]], unit: str, meter: str, day: str) -> list[Bar]:
    """A bar for each day of the last 30, or for each hour of a day; those without usage are empty."""
    size = len("2026-03-01T12" if day else "2026-03-01")
    values = {one["period_start"][:size]: Decimal(one["quantity"]) for one in periods}
    if day:
        names = {f"{day}T{hour:02d}": f"{hour:02d}:00" for hour in range(24)}
    else:
        days = [(now() - timedelta(days=ago)).date().isoformat() for ago in range(_DAYS, -1, -1)]
        names = {name: name[5:] for name in days}
    return [
        Bar(
            shown,
            values.get(name, Decimal(0)),
            f"{number(str(values.get(name, 0)))} {unit}",
            "" if day else f"/usage?meter={meter}&day={name}",
        )
        for name, shown in names.items()
    ]


async def keys(
    person: Person, made: dict[str, Any] | None = None, error: str = "", status: int = 200
) -> Response:
    me = await person.call("GET", "/api/v1/me")
    found = await person.call("GET", f"{_keys_of(me)}", params=window(person, 100))
    return page(
        person, "keys.html", status, keys=listed(found), after=behind(found), scopes=me["scopes"], made=made,
        error=error,
    )  # fmt: skip


async def keys_page(person: Person) -> Response:
    return await keys(person)


async def create_key(person: Person) -> Response:
    form = await form_of(person)
    me = await person.call("GET", "/api/v1/me")
    scopes = [one for one in form.getlist("scope") if isinstance(one, str)]
    try:
        made = await person.call(
            "POST", _keys_of(me), {"name": text_of(form, "name").strip(), "scopes": scopes}
        )
    except ApiError as error:
        return await keys(
            person, error=message(person.request, error.code, error.detail), status=error.status
        )
    return await keys(person, made=made)


async def change_key(person: Person) -> Response:
    await form_of(person)
    me = await person.call("GET", "/api/v1/me")
    key, what = segment(person.request.path_params["id"]), person.request.path_params["what"]
    if what == "rotate":
        return await keys(person, made=await person.call("POST", f"{_keys_of(me)}/{key}/rotate", {}))
    await person.call("DELETE", f"{_keys_of(me)}/{key}")
    return see_other("/keys")


def _keys_of(me: dict[str, Any]) -> str:
    return f"/api/v1/organizations/{segment(me['organization'])}/keys"


ROUTES: Final = routes(
    [
        ("GET", "/usage", usage),
        ("GET", "/keys", keys_page),
        ("POST", "/keys", create_key),
        ("POST", "/keys/{id}/{what}", change_key),
    ]
)
