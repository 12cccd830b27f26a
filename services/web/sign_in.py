"""Pages of accounts: sign in and out, second factor, register, reset, invitation, language."""

from contextlib import suppress
from typing import Any, Final

from starlette.responses import Response

from services.web.api import ApiError
from services.web.pages import LANGUAGES, page
from services.web.person import LANGUAGE, Person, see_other
from services.web.routing import form_of, local, message, routes, text_of

START: Final = "/conversations"


async def start(person: Person) -> Response:
    return see_other(START if person.is_signed_in else "/sign-in")


async def sign_in_form(person: Person) -> Response:
    return page(person, "sign_in.html", next=local(person.request.query_params.get("next", ""), START))


async def sign_in(person: Person) -> Response:
    form = await form_of(person)
    email, back = text_of(form, "email").strip(), local(text_of(form, "next"), START)
    body = {"email": email, "password": text_of(form, "password")}
    if person.device:
        body["device_token"] = person.device
    try:
        answer = await person.api.call("POST", "/api/v1/auth/login", body=body)
    except ApiError as error:
        said = message(person.request, error.code, error.detail)
        return page(person, "sign_in.html", error.status, next=back, error=said)
    if answer.get("object") == "mfa_challenge":
        response = see_other("/sign-in/code")
        person.cookies.put(response, "challenge", (answer["challenge"], email, back))
        return response
    return _entered(person, answer, email, back)


async def code_form(person: Person) -> Response:
    return page(person, "code.html")


async def code(person: Person) -> Response:
    form = await form_of(person)
    kept = person.cookies.get(person.request.cookies, "challenge", tuple[str, str, str])
    if kept is None:
        return see_other("/sign-in")
    challenge, email, back = kept
    body = {"challenge": challenge, "code": text_of(form, "code").strip()}
    if person.device:
        body["device_token"] = person.device
    try:
        answer = await person.api.call("POST", "/api/v1/auth/challenge", body=body)
    except ApiError as error:
        return page(
            person, "code.html", error.status, error=message(person.request, error.code, error.detail)
        )
    return _entered(person, answer, email, back)


def _entered(person: Person, answer: dict[str, Any], email: str, back: str) -> Response:
    response = see_other(local(back, START))
    person.enter(response, answer, email)
    return response


async def sign_out(person: Person) -> Response:
    await form_of(person)
    if person.refresh_token:
        # Signed out here all the same; the session ends by itself when nobody renews it.
        with suppress(ApiError):
            await person.api.call("POST", "/api/v1/auth/logout", body={"refresh_token": person.refresh_token})
    person.leave()
    return see_other("/sign-in")


async def register_form(person: Person) -> Response:
    return page(person, "register.html")


async def register(person: Person) -> Response:
    form = await form_of(person)
    body = {name: text_of(form, name).strip() for name in ("email", "name", "organization")}
    return await _posted(person, "register.html", "register", {**body, "password": text_of(form, "password")})


async def forgot_form(person: Person) -> Response:
    return page(person, "forgot.html")


async def forgot(person: Person) -> Response:
    form = await form_of(person)
    return await _posted(person, "forgot.html", "forgot", {"email": text_of(form, "email").strip()})


async def _posted(person: Person, template: str, action: str, body: dict[str, str]) -> Response:
    try:
        await person.api.call("POST", f"/api/v1/auth/{action}", body=body)
    except ApiError as error:
        return page(person, template, error.status, error=message(person.request, error.code, error.detail))
    return page(person, template, notice="mail_sent")


async def by_mail_form(person: Person) -> Response:
    """The page behind a link of a mail: looking at it uses nothing up."""
    return page(
        person,
        "by_mail.html",
        action=person.request.url.path,
        token=person.request.query_params.get("token", ""),
    )


_BY_MAIL: Final = {"/verify": "verify-email", "/reset": "reset", "/invitation": "invitations/accept"}


async def by_mail(person: Person) -> Response:
    form, action = await form_of(person), person.request.url.path
    token = text_of(form, "token")
    body = {"token": token, "password": text_of(form, "password")}
    try:
        answer = await person.api.call("POST", f"/api/v1/auth/{_BY_MAIL[action]}", body=body)
    except ApiError as error:
        said = message(person.request, error.code, error.detail)
        return page(person, "by_mail.html", error.status, action=action, token=token, error=said)
    response = page(person, "sign_in.html", next=START, notice="done_sign_in")
    if answer.get("device_token"):
        person.cookies.put(response, "device", answer["device_token"])
    return response


async def change_language(person: Person) -> Response:
    form = await form_of(person)
    response = see_other(local(text_of(form, "back")))
    wanted = text_of(form, "to")
    if wanted in LANGUAGES:
        response.set_cookie(
            LANGUAGE,
            wanted,
            max_age=365 * 24 * 3600,
            httponly=True,
            samesite="lax",
            secure=person.cookies.secure,
        )
    return response


ROUTES: Final = routes(
    [
        ("GET", "/", start),
        ("GET", "/sign-in", sign_in_form),
        ("POST", "/sign-in", sign_in),
        ("GET", "/sign-in/code", code_form),
        ("POST", "/sign-in/code", code),
        ("POST", "/sign-out", sign_out),
        ("GET", "/register", register_form),
        ("POST", "/register", register),
        ("GET", "/forgot", forgot_form),
        ("POST", "/forgot", forgot),
        *[("GET", path, by_mail_form) for path in _BY_MAIL],
        *[("POST", path, by_mail) for path in _BY_MAIL],
        ("POST", "/language", change_language),
    ]
)
