"""What pages promise to a browser: cookies, forms, headers, escaping, languages."""

import asyncio
import io
import re
from pathlib import Path

import aiohttp
import pytest
from starlette.responses import Response

from services.web import words
from services.web.cookies import Cookies, SignedIn
from services.web.headers import POLICY
from services.web.pages import LANGUAGES, with_citations
from services.web.routing import MAX_WORDS, local
from tests.services.web.conftest import Browser, Site

STATIC = Path(words.__path__[0]).parent / "static"
TEMPLATES = Path(words.__path__[0]).parent / "templates"
INSIDE = ("/usage", "/invoice", "/keys", "/operations")


async def test_sign_in_look_around_and_sign_out(browser: Browser, email: str) -> None:
    assert (await browser.get("/")).location == "/sign-in"
    entered = await browser.sign_in(email)
    assert (entered.status, entered.location) == (303, "/conversations")
    for path in INSIDE:
        shown = await browser.get(path)
        assert shown.status == 200, shown.text
        assert f'href="{path}" aria-current="page"' in shown.text
    out = await browser.post("/sign-out", shown.csrf)
    assert out.location == "/sign-in"
    assert (await browser.get("/usage")).location == "/sign-in?next=%2Fusage"


async def test_an_old_session_cookie_is_of_no_use_after_signing_out(browser: Browser, email: str) -> None:
    await browser.sign_in(email)
    kept = dict(browser.cookies)
    await browser.post("/sign-out", (await browser.get("/usage")).csrf)
    browser.cookies = kept
    async with asyncio.timeout(10):
        while (await browser.get("/usage")).status != 303:  # notices reach the gateway within 2 seconds
            browser.cookies = dict(kept)


async def test_wrong_password_says_so_in_the_language_of_the_browser(browser: Browser, email: str) -> None:
    refused = await browser.sign_in(email, "wrong")
    assert refused.status == 401
    assert LANGUAGES["en"]["problem_wrong_credentials"] in refused.text
    browser.language = "fr,zh-CN;q=0.8"
    refused = await browser.sign_in(email, "wrong")
    assert LANGUAGES["zh"]["problem_wrong_credentials"] in refused.text
    assert '<html lang="zh-Hans">' in refused.text


async def test_who_guesses_at_another_browser_locks_out_nobody_but_himself(site: Site, email: str) -> None:
    """Attempts are counted by the address of the browser, not by that of the pages."""

    def connector(address: str) -> aiohttp.TCPConnector:
        return aiohttp.TCPConnector(local_addr=(address, 0))

    jar = aiohttp.DummyCookieJar()
    async with (
        aiohttp.ClientSession(connector=connector("127.0.0.81"), cookie_jar=jar) as guesser,
        aiohttp.ClientSession(connector=connector("127.0.0.82"), cookie_jar=jar) as owner,
    ):
        guessing = Browser(guesser, site.address)
        statuses = [(await guessing.sign_in(email, f"wrong {number}")).status for number in range(12)]
        assert statuses == [401] * 10 + [429] * 2
        assert (await Browser(owner, site.address).sign_in(email)).status == 303


async def test_the_switch_of_languages_wins_over_the_browser(browser: Browser) -> None:
    form = await browser.get("/sign-in")
    back = await browser.post("/language", form.csrf, to="zh", back="/sign-in")
    assert back.location == "/sign-in"
    assert LANGUAGES["zh"]["sign_in"] in (await browser.get("/sign-in")).text
    away = await browser.post("/language", form.csrf, to="zh", back="//evil.example")
    assert away.location == "/"


def test_languages_have_the_same_words_and_pages_use_all_they_have() -> None:
    assert LANGUAGES["en"].keys() == LANGUAGES["zh"].keys()
    assert not [key for one in LANGUAGES.values() for key, word in one.items() if not word.strip()]
    used = set(re.findall(r"\bt\.(\w+)", "".join(file.read_text() for file in TEMPLATES.glob("*.html"))))
    assert used <= LANGUAGES["en"].keys()
    assert not used & set(dir(dict))  # a template would find the method instead of the word


@pytest.mark.parametrize(
    "path",
    [
        "/sign-in",
        "/sign-out",
        "/language",
        "/register",
        "/keys",
        "/documents",
        "/bases",
        "/runs/run_1/stop",
        "/runs/run_1/approvals/tcl_1",
    ],
)
async def test_no_form_without_the_token_of_this_visit(browser: Browser, email: str, path: str) -> None:
    await browser.sign_in(email)
    stranger = Browser(browser._http, browser._address)
    theirs = (await stranger.get("/sign-in")).csrf
    for token in ("", "0" * 64, theirs):
        answer = await browser.post(path, token, email=email, password="x", name="x", slug="x")
        assert answer.status == 403, path
    assert LANGUAGES["en"]["problem_form_expired"] in answer.text


async def test_only_who_is_signed_in_may_send_a_large_form(browser: Browser, email: str) -> None:
    csrf = (await browser.get("/sign-in")).csrf
    large = b"x" * (MAX_WORDS + 1)

    def with_file() -> aiohttp.FormData:
        form = aiohttp.FormData({"csrf": csrf, "base": "kb_1"})
        form.add_field("file", io.BytesIO(large), filename="a.txt")
        return form

    assert (await browser.send("POST", "/documents", with_file())).status == 413
    csrf = (await browser.get((await browser.sign_in(email)).location)).csrf
    passed_on = await browser.send("POST", "/documents", with_file())
    assert LANGUAGES["en"]["problem_unavailable"] in passed_on.text  # nobody keeps documents here
    words_ = io.BytesIO(f"csrf={csrf}&text=".encode() + large)
    too_many = await browser.send(
        "POST", "/documents", words_, content_type="application/x-www-form-urlencoded"
    )
    assert too_many.status == 413


async def test_posts_of_other_sites_are_refused(browser: Browser, email: str) -> None:
    await browser.sign_in(email)
    token = (await browser.get("/keys")).csrf
    for site_, status in (("cross-site", 403), ("same-site", 403), ("same-origin", 303)):
        answer = await browser.send("POST", "/language", {"csrf": token, "to": "en"}, sec_fetch_site=site_)
        assert answer.status == status, site_


async def test_cookies_cannot_be_read_by_scripts_nor_sent_by_other_sites(
    http: aiohttp.ClientSession, site: Site, email: str
) -> None:
    for address, secure in ((site.address, False), (site.secure_address, True)):
        entered = await Browser(http, address).sign_in(email)
        names = {one.partition("=")[0] for one in entered.set_cookies}
        prefix = "__Host-headrace-" if secure else "headrace-"
        assert {f"{prefix}session", f"{prefix}device", f"{prefix}visit"} <= names
        for one in entered.set_cookies:
            attributes = {part.strip().lower() for part in one.split(";")[1:]}
            assert {"httponly", "samesite=lax", "path=/"} <= attributes, one
            assert ("secure" in attributes) is secure
            assert len(one) < 4096


async def test_tokens_are_not_in_cookies_as_they_are(browser: Browser, email: str) -> None:
    entered = await browser.sign_in(email)
    assert "eyJ" not in str(entered.set_cookies)
    assert "hr_refresh" not in str(entered.set_cookies)


def test_a_cookie_opens_as_what_it_is_and_unchanged_only() -> None:
    cookies, response = Cookies(b"k" * 32, secure=False), Response()
    session = SignedIn("a", "r", 1, "e")
    cookies.put(response, "session", session)
    sealed = response.headers["set-cookie"].partition("=")[2].partition(";")[0].strip('"')
    assert cookies.get({"headrace-session": sealed}, "session", SignedIn) == session
    assert cookies.get({"headrace-device": sealed}, "device", SignedIn) is None
    flipped = sealed[:-6] + ("A" if sealed[-6] != "A" else "B") + sealed[-5:]
    for wrong in ("", "x", flipped, sealed[4:]):
        assert cookies.get({"headrace-session": wrong}, "session", SignedIn) is None
    other = Cookies(b"o" * 32, secure=False)
    assert other.get({"headrace-session": sealed}, "session", SignedIn) is None


@pytest.mark.parametrize("path", ["/sign-in", "/static/style.css", "/nowhere", "/usage", "/healthz"])
async def test_every_answer_has_the_policy(browser: Browser, path: str) -> None:
    headers = (await browser.get(path)).headers
    assert headers["content-security-policy"] == POLICY
    assert headers["x-content-type-options"] == "nosniff"
    assert "unsafe" not in POLICY
    assert "default-src 'none'" in POLICY
    expected = "public, max-age=3600" if path.startswith("/static") else "no-store"
    assert headers["cache-control"] == expected


def test_pages_hold_no_script_style_or_handler_of_their_own() -> None:
    for file in TEMPLATES.glob("*.html"):
        html = file.read_text()
        assert not re.search(r"<style|\sstyle=|\son\w+=|javascript:|\|\s*safe", html), file.name
        assert all("src=" in tag for tag in re.findall(r"<script[^>]*>", html)), file.name
    for file in STATIC.glob("*.js"):
        assert not re.search(
            r"innerHTML|outerHTML|insertAdjacentHTML|document\.write|eval\(|localStorage", file.read_text()
        )


def test_text_of_models_is_escaped_around_its_citations() -> None:
    citation = {
        "marker": 1,
        "document": "doc_1",
        "version": 2,
        "start": 3,
        "end": 9,
        "quote": '"><script>alert(1)</script>',
    }
    html = str(with_citations("<img src=x onerror=alert(1)> yes [1] no [2] </div>", [citation]))
    assert "<img" not in html
    assert "<script" not in html
    assert "</div>" not in html
    assert 'href="/documents/doc_1/versions/2/text?start=3&amp;end=9#quote"' in html
    assert html.count("<a ") == 1
    assert "[2]" in html


def test_a_passage_quoted_twice_is_linked_twice() -> None:
    twice = [
        {"marker": 1, "document": "doc_1", "version": 1, "start": at, "end": at + 2, "quote": "ab"}
        for at in (0, 9)
    ]
    html = str(with_citations("one [1] two [1] three [1]", twice))
    assert re.findall(r"start=(\d)", html) == ["0", "9", "9"]


@pytest.mark.parametrize(
    ("given", "kept"),
    [
        ("/usage", "/usage"),
        ("//evil.example", "/"),
        ("/\\evil", "/"),
        ("https://evil.example", "/"),
        ("", "/"),
        ("/a\nb", "/"),
    ],
)
def test_redirects_stay_here(given: str, kept: str) -> None:
    assert local(given) == kept


async def test_a_key_is_made_shown_once_and_revoked(browser: Browser, email: str) -> None:
    await browser.sign_in(email)
    page = await browser.get("/keys")
    made = await browser.send(
        "POST", "/keys", {"csrf": page.csrf, "name": "<b>mine</b>", "scope": "usage:read"}
    )
    [key] = re.findall(r"sk_live_\w{12}_\w{49}", made.text)
    assert "&lt;b&gt;mine&lt;/b&gt;" in made.text
    assert "<b>mine" not in made.text
    listed = await browser.get("/keys")
    assert key not in listed.text
    [key_id] = set(re.findall(r'action="/keys/(key_[0-9a-f-]+)/revoke"', listed.text))
    assert (await browser.post(f"/keys/{key_id}/revoke", listed.csrf)).status == 303
    assert "/revoke" not in (await browser.get("/keys")).text


async def test_what_is_not_there_is_a_page_in_words(browser: Browser) -> None:
    missing = await browser.get("/nowhere")
    assert missing.status == 404
    assert LANGUAGES["en"]["problem_not_found"] in missing.text
    script = await browser.get("/nowhere", accept="application/json")
    assert '"code":"not_found"' in script.text
