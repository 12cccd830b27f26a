"""Who looks at the pages: sign-in state in a cookie, tokens renewed as they end, forms that are ours.

A refresh token works once. Requests of one browser come in parallel, so within this process the first
renews and the others wait for it; what it got is remembered for a minute for those that come with the old
cookie. Several instances of the web service need a balancer that keeps a browser on one of them.
"""

import asyncio
import hashlib
import secrets
import time
from dataclasses import dataclass, field
from typing import Any, Final

from starlette.requests import Request
from starlette.responses import RedirectResponse, Response

from services.web.api import Api, ApiError
from services.web.cookies import Cookies, SignedIn

EARLY: Final = 60
"""An access token is renewed so many seconds before it ends."""
REMEMBER: Final = 60.0
MOST: Final = 10_000
LANGUAGE: Final = "headrace-language"


class SignInFirst(Exception):  # noqa: N818 - it is an answer, not a fault
    """Nobody is signed in (any more)."""


class NotOurFormError(Exception):
    """A post without the form token of this visit, or from another site."""


@dataclass(slots=True)
class Renewals:
    """Renews tokens, once for all that ask with the same refresh token."""

    _known: dict[bytes, tuple[float, asyncio.Task[SignedIn | None]]] = field(default_factory=dict)

    async def renew(self, api: Api, old: SignedIn) -> SignedIn | None:
        """The next tokens; None where the session has ended. Raises: ApiError where the API is away."""
        now = time.monotonic()
        if len(self._known) > MOST:
            self._known = {key: one for key, one in self._known.items() if one[0] > now}
        name = hashlib.sha256(old.refresh.encode()).digest()
        until, task = self._known.get(name, (0.0, None))
        if task is None or until < now or (task.done() and task.exception() is not None):
            task = asyncio.create_task(_ask(api, old))
            self._known[name] = (now + REMEMBER, task)
        return await asyncio.shield(task)


async def _ask(api: Api, old: SignedIn) -> SignedIn | None:
    try:
        answer = await api.call("POST", "/api/v1/auth/refresh", body={"refresh_token": old.refresh})
    except ApiError as error:
        if error.status == 401:
            return None
        raise
    return signed_in(answer, old.email)


def signed_in(answer: dict[str, Any], email: str) -> SignedIn:
    """From the API's answer to a login or refresh."""
    until = int(time.time()) + int(answer["expires_in"])
    return SignedIn(answer["access_token"], answer["refresh_token"], until, email)


class Person:
    """The browser behind one request."""

    def __init__(self, request: Request, cookies: Cookies, api: Api, renewals: Renewals) -> None:
        self.request, self.cookies, self.api, self._renewals = request, cookies, api, renewals
        self._session = cookies.get(request.cookies, "session", SignedIn)
        self._changed = False
        self._gone = False
        self.visit = cookies.get(request.cookies, "visit", str) or ""
        self._new_visit = not self.visit
        if self._new_visit:
            self.visit = secrets.token_urlsafe(24)

    @property
    def is_signed_in(self) -> bool:
        return self._session is not None

    @property
    def email(self) -> str:
        return "" if self._session is None else self._session.email

    @property
    def device(self) -> str | None:
        return self.cookies.get(self.request.cookies, "device", str)

    @property
    def form_token(self) -> str:
        return self.cookies.form_token(self.visit)

    @property
    def refresh_token(self) -> str:
        return "" if self._session is None else self._session.refresh

    async def token(self, *, renew: bool = False) -> str:
        """An access token that is good for a while. Raises: SignInFirst, ApiError."""
        if self._session is None:
            raise SignInFirst
        if renew or self._session.until - time.time() < EARLY:
            session = await self._renewals.renew(self.api, self._session)
            if session is None:
                self._gone = True
                raise SignInFirst
            self._session, self._changed = session, True
        return self._session.access

    async def call(
        self, method: str, path: str, body: object = None, *, params: dict[str, str] | None = None
    ) -> Any:
        """Ask the API as this person; a token that is refused is renewed once. Raises: SignInFirst, ApiError."""
        try:
            return await self.api.call(method, path, await self.token(), body, params=params)
        except ApiError as error:
            if error.status != 401 or error.code != "unauthenticated":
                raise
        return await self.api.call(method, path, await self.token(renew=True), body, params=params)

    def check_form(self, token: str) -> None:
        """Raises: NotOurFormError."""
        site = self.request.headers.get("sec-fetch-site", "same-origin")
        if site not in {"same-origin", "none"} or not self.cookies.is_form_token(self.visit, token):
            raise NotOurFormError

    def enter(self, response: Response, answer: dict[str, Any], email: str) -> None:
        """Signed in: a new visit, so that what was known of the old one is worth nothing."""
        self.visit, self._new_visit = secrets.token_urlsafe(24), True
        self._session, self._changed = signed_in(answer, email), True
        if answer.get("device_token"):
            self.cookies.put(response, "device", answer["device_token"])
        self.cookies.drop(response, "challenge")

    def leave(self) -> None:
        """Signed out: the cookie goes with the answer."""
        self._session, self._gone, self._new_visit = None, True, True
        self.visit = secrets.token_urlsafe(24)

    def keep(self, response: Response) -> Response:
        """Put what changed into the answer's cookies."""
        if self._new_visit:
            self.cookies.put(response, "visit", self.visit)
        if self._gone:
            self.cookies.drop(response, "session")
        elif self._changed:
            self.cookies.put(response, "session", self._session)
        self._new_visit = self._gone = self._changed = False
        return response


def see_other(path: str) -> RedirectResponse:
    """After a post: look at another page."""
    return RedirectResponse(path, 303)
