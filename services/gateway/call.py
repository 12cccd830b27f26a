"""One request that is not for the gateway itself: who, how often, where to; counted as it is answered."""

import time
from typing import TYPE_CHECKING, Final

from starlette.types import Receive, Scope, Send

from core.log import Logger
from core.plans import tokens_per_minute
from services.common import browser_address
from services.common.auth import bearer
from services.common.body import too_large
from services.common.errors import Problem, document, from_exception, from_status
from services.common.limits import LIMIT_WITHOUT_PLAN, Decision, rate_limited, tokens_limited
from services.common.observe import UNMATCHED, request_id
from services.common.principal import HEADER, Principal
from services.common.token_window import NOTHING, RESERVED, Counted, window_name
from services.gateway.exchange import CallerGoneError, Exchange
from services.gateway.headers import Headers
from services.gateway.routes import Route
from services.gateway.trace import logged_as, outgoing_traceparent

if TYPE_CHECKING:
    from services.gateway.app import Gateway

GUESSES: Final = 120
"""Keys and tokens a minute from one address that are not valid; then users are asked about no new ones of it."""
BYTES_PER_TOKEN: Final = 4
UNANNOUNCED_TOKENS: Final = 256
"""Counted at first for a body whose length nobody announced."""
_PASSED_ON_METHODS: Final = frozenset({"GET", "HEAD", "POST", "PUT", "PATCH", "DELETE"})
_PRINCIPAL: Final = HEADER.encode()
_BROWSER: Final = browser_address.HEADER.encode()
_LOG = Logger("services.gateway.call")


class Call:
    """One request that is not for the gateway itself."""

    def __init__(self, gateway: "Gateway", scope: Scope, receive: Receive, send: Send) -> None:
        self._gateway, self._scope, self._receive, self._send = gateway, scope, receive, send
        self._began = time.perf_counter()
        self._id = request_id(scope["headers"])
        self._traceparent = outgoing_traceparent(scope["headers"])
        self._route: Route | None = None
        self._address = ""
        self._tenant = ""
        self._limit: Decision | None = None
        self._tokens: Decision | None = None
        self._window = ""
        self._counted = NOTHING
        self._asked = False
        self._status = 0

    async def run(self) -> None:
        with logged_as(self._traceparent):
            await self._run()

    async def _run(self) -> None:
        exchange: Exchange | None = None
        try:
            exchange = await self._prepare()
            if exchange is not None:
                await exchange.run()
        except CallerGoneError:
            await self._take_back()
            self._status = 499
        except Exception as error:
            # The last place that can answer; a raw exception would become uvicorn's plain 500.
            if exchange is not None and exchange.started:
                _LOG.warn("the answer broke off", request=self._id, error=type(error).__name__)
            else:
                await self._take_back()
                await self._refuse(from_exception(error))
        finally:
            name = self._route.prefix if self._route is not None else UNMATCHED
            self._gateway.observe(name, self._status or 499, time.perf_counter() - self._began)

    async def _prepare(self) -> Exchange | None:
        """Everything before the service is asked; None where the gateway has answered itself."""
        scope, gateway = self._scope, self._gateway
        route = self._route = gateway.find(scope["raw_path"])
        method = scope["method"]
        if method == "OPTIONS":
            await self._answer(204, [(b"allow", _allow(route))], b"")
            return None
        if method not in _PASSED_ON_METHODS or ("GET" if method == "HEAD" else method) not in route.methods:
            raise from_status(405, {"allow": _allow(route).decode()})
        added = [(b"x-request-id", self._id.encode()), (b"traceparent", self._traceparent.encode())]
        length, browser = b"", ""
        credentials = []
        for name, value in scope["headers"]:
            if name == b"authorization":
                credentials.append(value.decode("latin-1"))
            elif name == b"content-length":
                length = value
            elif name == _BROWSER:
                browser = value.decode("latin-1")
        client = scope["client"]
        address = self._address = gateway.browser(browser) or (client[0] if client else "")
        added.append((b"x-forwarded-for", address.encode("ascii", "replace")))
        if route.per_address:
            await self._admit(f"address:{gateway.pseudonym(address)}:{route.prefix}", route.per_address)
        if not route.public:
            principal, header = await self._identify(bearer(credentials))
            self._tenant = principal.tenant_id
            added.append((_PRINCIPAL, header.encode()))
            limit = principal.requests_per_minute or LIMIT_WITHOUT_PLAN
            await self._admit(window_name(principal.tenant_id, principal.subject), limit)
            if route.uses_tokens(method, scope["raw_path"]):
                await self._admit_tokens(route, principal, length)
        if length and int(length) > route.max_body:
            raise too_large(route.max_body)
        return Exchange(
            scope,
            self._receive,
            self._send,
            route=route,
            client=gateway.client(route),
            breaker=gateway.breaker(route),
            added=added,
            on_ask=self._on_ask,
            on_answer=self._on_answer,
        )

    async def _identify(self, credential: str) -> tuple[Principal, str]:
        """Who calls, and the header that says so. Raises: Problem 401, 429, 503."""
        try:
            return await self._gateway.authenticator.signed(credential, self._admit_stranger)
        except Problem as problem:
            if problem.status == 401:
                decision = await self._gateway.limiter.take(self._guesses(), GUESSES)
                if not decision.allowed:
                    raise self._guessed(decision) from None
            raise

    def _admit_stranger(self) -> None:
        """Raises: Problem 429."""
        decision = self._gateway.limiter.refusal(self._guesses())
        if decision is not None:
            raise self._guessed(decision)

    def _guesses(self) -> str:
        return f"address:{self._gateway.pseudonym(self._address)}:guesses"

    def _guessed(self, decision: Decision) -> Problem:
        self._limit = decision
        return Problem(
            429,
            "rate_limited",
            "Too many requests",
            f"More than {decision.limit} keys or tokens in a minute that are not valid came from this address;"
            f" go on in {decision.retry_after} s.",
        )

    async def _admit(self, name: str, limit: int) -> None:
        self._limit = decision = await self._gateway.limiter.take(name, limit)
        if not decision.allowed:
            raise rate_limited(decision)  # with headers of the limit, which stand on every answer

    async def _admit_tokens(self, route: Route, principal: Principal, length: bytes) -> None:
        """Count what the call will use at least; agents puts it right when it knows. Of a run it counts all when
        that ends."""
        cost = 1
        if route.tokens:
            cost += int(length) // BYTES_PER_TOKEN if length else UNANNOUNCED_TOKENS
        limit = tokens_per_minute(principal.plan, principal.requests_per_minute)
        name = self._window = window_name(principal.tenant_id, principal.subject)
        self._tokens = decision = await self._gateway.tokens.take(name, limit, cost)
        self._counted = Counted(decision.taken, time.monotonic())
        if not decision.allowed:
            raise tokens_limited(decision)  # with headers, as above

    def _on_ask(self) -> Headers:
        self._asked = True
        if self._tokens is None or self._route is None or not self._route.tokens:
            return []
        return [(RESERVED.encode(), self._counted.header())]

    async def _take_back(self) -> None:
        """The tokens of a call that agents never had; what it had, it settles."""
        if not self._asked:
            await self._gateway.window.settle(self._window, 0, self._counted)

    def _on_answer(self, status: int) -> Headers:
        """Counts the request (an answer that is not counted is not given) and makes our headers."""
        self._status = status
        route = self._route
        refused = any(one is not None and not one.allowed for one in (self._limit, self._tokens))
        if route is not None and route.metered and self._tenant and not refused:
            try:
                self._gateway.spool.record(self._tenant, route.prefix, f"{status // 100}xx")
            except OSError as error:
                _LOG.error("the request meter cannot write", exc=error)
                raise Problem(
                    503,
                    "meter_unavailable",
                    "Temporarily unavailable",
                    "The gateway cannot count requests now. The service may have done what was asked.",
                    headers={"retry-after": "5"},
                ) from error
        took = (time.perf_counter() - self._began) * 1000
        headers = [
            (b"x-request-id", self._id.encode()),
            (b"traceparent", self._traceparent.encode()),
            (b"server-timing", b"gateway;dur=%.1f" % took),
        ]
        if self._limit is not None:
            headers += self._limit.headers()
        if self._tokens is not None:
            headers += self._tokens.token_headers()
        return headers

    async def _refuse(self, problem: Problem) -> None:
        path = self._scope["raw_path"].decode("ascii", "replace")
        body, media_type = document(problem, path)
        headers = [(name.encode(), value.encode()) for name, value in problem.headers.items()]
        headers.append((b"content-type", media_type.encode()))
        try:
            await self._answer(problem.status, headers, body)
        except Problem as unmetered:
            self._tenant = ""
            await self._answer(unmetered.status, headers[-1:], document(unmetered, path)[0])

    async def _answer(self, status: int, headers: Headers, body: bytes) -> None:
        headers = [*headers, *self._on_answer(status)]
        if status != 204:
            headers.append((b"content-length", b"%d" % len(body)))
        await self._send({"type": "http.response.start", "status": status, "headers": headers})
        await self._send({"type": "http.response.body", "body": body})


def _allow(route: Route) -> bytes:
    methods = [*route.methods, *(["HEAD"] if "GET" in route.methods else []), "OPTIONS"]
    return ", ".join(methods).encode()
