"""Templates, languages and the frame that every page shares."""

import re
from collections.abc import Mapping
from datetime import datetime
from decimal import Decimal, InvalidOperation
from pathlib import Path
from types import MappingProxyType
from typing import Any, Final

from jinja2 import Environment, FileSystemLoader, StrictUndefined
from markupsafe import Markup, escape
from starlette.requests import Request
from starlette.responses import HTMLResponse, Response

from services.web.person import LANGUAGE, Person
from services.web.words import en, zh

FOLDER: Final = Path(__file__).parent
LANGUAGES: Final[Mapping[str, Mapping[str, str]]] = MappingProxyType({"en": en.WORDS, "zh": zh.WORDS})
_TAGS: Final = {"en": "en", "zh": "zh-Hans"}
_MARKER: Final = re.compile(r"\[(\d{1,3})\]")

environment: Final = Environment(
    loader=FileSystemLoader(FOLDER / "templates"),
    autoescape=True,
    undefined=StrictUndefined,
    trim_blocks=True,
    lstrip_blocks=True,
)


def language(request: Request) -> str:
    """The one chosen by the switch, else the first of Accept-Language that there is, else English."""
    chosen = request.cookies.get(LANGUAGE, "")
    if chosen in LANGUAGES:
        return chosen
    for wanted in request.headers.get("accept-language", "").split(","):
        tag = wanted.partition(";")[0].strip().lower().partition("-")[0]
        if tag in LANGUAGES:
            return tag
    return "en"


def page(person: Person, template: str, status: int = 200, **values: Any) -> Response:
    """A whole page for this person."""
    lang = language(person.request)
    words = LANGUAGES[lang]
    html = environment.get_template(template).render(
        t=words,
        language=_TAGS[lang],
        other="zh" if lang == "en" else "en",
        here=person.request.url.path,
        person=person,
        csrf=person.form_token,
        **{"error": "", "notice": "", **values},
    )
    return person.keep(HTMLResponse(html, status))


def with_citations(text: str, citations: list[dict[str, Any]]) -> Markup:
    """Text of a model, escaped, whose `[n]` lead to the places they stand for.

    A passage may be quoted at several places: the second `[n]` leads to its second citation.
    """
    known: dict[int, list[dict[str, Any]]] = {}
    for one in reversed(citations):
        known.setdefault(int(one.get("marker") or 0), []).append(one)
    parts: list[str | Markup] = []
    at = 0
    for match in _MARKER.finditer(text):
        left = known.get(int(match[1]))
        if not left:
            continue
        one = left.pop() if len(left) > 1 else left[0]
        link = Markup('<a class="cite" href="{}" title="{}">{}</a>').format(
            place_of(one), one["quote"], match[0]
        )
        parts += [text[at : match.start()], link]
        at = match.end()
    return Markup("").join([*(escape(part) for part in parts), escape(text[at:])])


def place_of(citation: Mapping[str, Any]) -> str:
    """Path of the page that shows a citation in its document."""
    document, version = citation["document"], int(citation["version"])
    return f"/documents/{document}/versions/{version}/text?start={int(citation['start'])}&end={int(citation['end'])}#quote"


def day(text: str | None) -> str:
    """`2026-02-18 12:00` of an RFC 3339 time."""
    if not text:
        return ""
    return datetime.fromisoformat(text).strftime("%Y-%m-%d %H:%M")


def number(text: str | int | None) -> str:
    """With thousands apart, as exact as it came."""
    try:
        return f"{Decimal(str(text)):,f}"
    except (InvalidOperation, ValueError):
        return str(text or "")


environment.filters.update(day=day, number=number)
environment.globals.update(with_citations=with_citations, place_of=place_of)
