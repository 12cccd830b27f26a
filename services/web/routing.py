"""How a page is reached: the person, the form token, and an answer for everything that goes wrong."""

from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass
from types import SimpleNamespace
from typing import Any, Final
from urllib.parse import quote

from starlette.datastructures import FormData
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route

from services.web.api import Api, ApiError
from services.web.cookies import Cookies
from services.web.pages import LANGUAGES, language, page
from services.web.person import NotOurFormError, Person, Renewals, SignInFirst, see_other

Handler = Callable[[Person], Awaitable[Response]]
MAX_FORM: Final = 100 << 20
"""Bytes of a form with a file in it; larger documents go through the API."""
MAX_WORDS: Final = 1 << 20
"""Bytes of any other form, and of every form of somebody who is not signed in."""


@dataclass(frozen=True, slots=True)
class Web:
    """What the pages work with; the app puts it at `app.state.web`."""

    api: Api
    cookies: Cookies
    renewals: Renewals

    def person(self, request: Request) -> Person:
        browser = request.client.host if request.client else ""
        return Person(request, self.cookies, self.api.of(browser), self.renewals)


class TooLargeError(Exception):
    """More bytes than a form may have."""


async def form_of(person: Person) -> FormData:
    """The fields of a post that came from a page of this visit.

    Raises:
        NotOurFormError: also where there is no form.
        TooLargeError: it announces more than it may have, or nothing.
    """
    headers = person.request.headers
    length, kind = headers.get("content-length", ""), headers.get("content-type", "")
    may_have_file = person.is_signed_in and kind.startswith("multipart/form-data")
    # What is too large is refused unread: the form token stands inside and comes too late.
    if not length.isdecimal() or int(length[:20]) > (MAX_FORM if may_have_file else MAX_WORDS):
        raise TooLargeError
    form = await person.request.form(max_files=1, max_fields=50, max_part_size=1 << 20)
    person.check_form(text_of(form, "csrf"))
    return form


def text_of(form: FormData, name: str, default: str = "") -> str:
    """A text field; a file in its place is none."""
    value = form.get(name)
    return value if isinstance(value, str) else default


def local(path: str, otherwise: str = "/") -> str:
    """A path of these pages, never an address elsewhere."""
    safe = path.startswith("/") and not path.startswith(("//", "/\\")) and path.isprintable()
    return path if safe else otherwise


def routes(table: Sequence[tuple[str, str, Handler]]) -> list[Route]:
    """Routes of (method, path, handler)."""
    return [Route(path, _endpoint(path, handler), methods=[method]) for method, path, handler in table]


def _endpoint(path: str, handler: Handler) -> Callable[[Request], Awaitable[Response]]:
    name = SimpleNamespace(path=path)

    async def endpoint(request: Request) -> Response:
        request.scope["route"] = name  # the template, for metrics
        web: Web = request.app.state.web
        person = web.person(request)
        try:
            return person.keep(await handler(person))
        except SignInFirst:
            person.leave()
            return person.keep(_to_sign_in(person))
        except NotOurFormError:
            return failed(person, 403, "form_expired")
        except TooLargeError:
            return failed(person, 413, "body_too_large")
        except ApiError as error:
            return failed(person, error.status, error.code, error.detail)

    return endpoint


def failed(person: Person, status: int, code: str, detail: str = "") -> Response:
    """A page, or JSON for a script, that says what happened and what to do."""
    said = message(person.request, code, detail)
    if wants_json(person.request):
        return person.keep(JSONResponse({"code": code, "detail": said}, status))
    return page(person, "error.html", status, message=said)


def message(request: Request, code: str, detail: str = "") -> str:
    """What people read: our own words for the codes that pages meet often, else what the API says."""
    words = LANGUAGES[language(request)]
    return words.get(f"problem_{code}") or detail or words["problem_error"]


def wants_json(request: Request) -> bool:
    return "text/html" not in request.headers.get("accept", "text/html")


def _to_sign_in(person: Person) -> Response:
    request = person.request
    if wants_json(request):
        return JSONResponse({"code": "sign_in"}, 401)
    back = str(request.url.path) if request.method == "GET" else "/"
    query = "" if back == "/" else f"?next={quote(back, safe='')}"
    return see_other(f"/sign-in{query}")


def window(person: Person, limit: int, name: str = "after") -> dict[str, str]:
    """Parameters for the part of a list that `?after=` of this page asks for, or `?name=` of its second list; the
    API judges the cursor."""
    after = cursor(person, name)
    return {"limit": str(limit), **({"after": after} if after else {})}


def cursor(person: Person, name: str = "after") -> str:
    """`?after=` of this page; empty for the first part of a list."""
    return person.request.query_params.get(name, "")


def listed(answer: Any) -> list[dict[str, Any]]:
    """Items of a list of the API."""
    found: list[dict[str, Any]] = answer["data"]
    return found


def behind(answer: Any) -> str:
    """Cursor of what follows in a list of the API; empty at its end."""
    return str(answer["last_id"]) if answer["has_more"] else ""
