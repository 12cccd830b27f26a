"""The methods of the protocol: subscribe, send, cancel, resolve, refresh."""

from typing import TYPE_CHECKING, Any, Final

from core.eventlog.api import LogUnavailableError
from core.plans import tokens_per_minute
from services.common.body import decode, parse
from services.common.errors import Problem, invalid, unavailable
from services.common.events import Span, Vector
from services.common.events.positions import After
from services.common.limits import LIMIT_WITHOUT_PLAN, Limiter, rate_limited, tokens_limited
from services.common.principal import Principal
from services.common.token_window import window_name
from services.ws import frames, schemas
from services.ws.access import Access
from services.ws.agents import Agents
from services.ws.sessions import SessionError, Sessions
from services.ws.socket import MAX_FRAME, Socket

if TYPE_CHECKING:
    from services.ws.gateway import Gateway

SUBSCRIPTIONS: Final = 100
_KINDS: Final = ("run", "conversation", "user")
_COUNTED: Final = frozenset({"message.send", "run.cancel", "approval.resolve"})
"""What the gateway would pass on over REST: it counts as a request of the caller's organisation here too."""
_ORDERED: Final = _COUNTED | {"token.refresh"}


class Handlers:
    """Answers requests; those with effects one after the other, in the order they came."""

    def __init__(
        self, agents: Agents, access: Access, sessions: Sessions, limiter: Limiter, tokens: Limiter
    ) -> None:
        """`limiter` counts requests a minute, `tokens` tokens."""
        self._agents, self._access, self._sessions = agents, access, sessions
        self._limiter, self._tokens = limiter, tokens

    def take(self, gateway: "Gateway", socket: Socket, payload: bytes) -> None:
        """A text of the client."""
        try:
            request = decode(parse(payload, max_bytes=MAX_FRAME), schemas.Request)
        except Problem as problem:
            if socket.may_ask():
                socket.push(frames.message("error", error=shown(problem)), keep=True)
            return
        if request.t == "pong":
            return
        if not socket.may_ask():
            busy = Problem(
                429, "too_many_requests", "Too many requests", "Wait for answers, or ask less often."
            )
            socket.push(_answer(request, busy), keep=True)
        elif request.t == "ping":
            socket.push(frames.PONG, keep=True)
        elif request.t != "req" or request.id is None:
            form = invalid("/t", "a frame is {t: req, id, method, params}, {t: ping} or {t: pong}")
            socket.push(frames.message("error", error=shown(form)), keep=True)
        elif request.method in _ORDERED:
            socket.orders.append(request)
            if len(socket.orders) == 1:
                gateway.spawn(socket, self._in_order(gateway, socket))
        else:
            gateway.spawn(socket, self._do(gateway, socket, request))

    def forget(self) -> None:
        """Ask again who may see what."""
        self._access.forget()

    async def _in_order(self, gateway: "Gateway", socket: Socket) -> None:
        while socket.orders:
            await self._do(gateway, socket, socket.orders[0])
            socket.orders.popleft()

    async def _do(self, gateway: "Gateway", socket: Socket, request: schemas.Request) -> None:
        try:
            result = await self._result(gateway, socket, request)
        except Problem as problem:
            socket.push(_answer(request, problem), keep=True)
            if problem.code == "missing_scope":
                socket.close(frames.SCOPE, problem.detail)
            return
        socket.push(frames.message("res", id=request.id, ok=True, result=result), keep=True)

    async def _result(self, gateway: "Gateway", socket: Socket, request: schemas.Request) -> dict[str, Any]:
        if request.method in _COUNTED:
            await self._admit(self._known(socket), starts=request.method == "message.send")
        match request.method:
            case "subscribe":
                return await self._subscribe(gateway, socket, decode(request.params, schemas.Subscribe))
            case "unsubscribe":
                wanted = decode(request.params, schemas.Unsubscribe)
                found = socket.subscriptions.get(wanted.ch)
                if found is not None:
                    found.stop()
                return {"unsubscribed": found is not None}
            case "message.send":
                return await self._send(socket, decode(request.params, schemas.Send))
            case "run.cancel":
                cancelled = decode(request.params, schemas.Cancel)
                return await self._agents.cancel(self._known(socket), cancelled.run_id)
            case "approval.resolve":
                said = decode(request.params, schemas.Resolve)
                content = {"decision": said.decision, "round": said.round, "note": said.note}
                return await self._agents.resolve(self._known(socket), said.run_id, said.call, content)
            case "token.refresh":
                return await self._refresh(gateway, socket, decode(request.params, schemas.Refresh))
        raise invalid(
            "/method", "subscribe, unsubscribe, message.send, run.cancel, approval.resolve or token.refresh"
        )

    async def _subscribe(
        self, gateway: "Gateway", socket: Socket, wanted: schemas.Subscribe
    ) -> dict[str, Any]:
        kind, _, identity = wanted.ch.partition(":")
        if kind not in _KINDS or not identity:
            raise invalid("/params/ch", "a channel is run:<id>, conversation:<id> or user:<id>")
        if len(socket.subscriptions) >= SUBSCRIPTIONS and wanted.ch not in socket.subscriptions:
            raise Problem(
                429, "too_many_subscriptions", "Too many subscriptions", f"At most {SUBSCRIPTIONS}."
            )
        owner = await self._access.check(self._known(socket), kind, identity)
        if socket.closed:
            raise unavailable("This connection")
        key = f"user:{owner.tenant}/{identity}" if kind == "user" else wanted.ch
        after = _after(kind, wanted.after)
        span = Span(owner.first.partition, owner.first.offset, owner.last) if owner.first else None
        subscription = gateway.subscription(socket, wanted.ch, key)
        try:
            answer = await subscription.start(after, span)
        except LogUnavailableError:
            raise unavailable("The event log") from None
        except ValueError as error:
            raise invalid("/params/after", str(error)) from None
        if after is not None:
            gateway.metrics.resumes.labels(str(answer["recovered"]).lower()).inc()
        return answer

    async def _send(self, socket: Socket, wanted: schemas.Send) -> dict[str, Any]:
        principal = self._known(socket)
        content: dict[str, Any] = {"text": wanted.text, "client_msg_id": wanted.client_msg_id}
        if wanted.agent is not None:
            content["agent"] = wanted.agent
        answer = await self._agents.send(principal, wanted.conversation_id, content)
        return {
            "run_id": answer["run"], "message_id": answer["message"], "accepted": True,
            "duplicate": answer["duplicate"],
        }  # fmt: skip

    async def _refresh(self, gateway: "Gateway", socket: Socket, wanted: schemas.Refresh) -> dict[str, Any]:
        if bool(wanted.ticket) == bool(wanted.token):
            raise invalid("/params", "give a ticket or a token")
        try:
            session = await self._sessions.begin(wanted.ticket, wanted.token)
            return {"expires_in_ms": gateway.renew(socket, session)}
        except SessionError as error:
            raise Problem(401, "unauthenticated", "Not authenticated", error.reason) from None

    async def _admit(self, principal: Principal, *, starts: bool) -> None:
        """As the gateway does, a run that it `starts` too. Raises: Problem 429 `rate_limited`, `tokens_limited`."""
        name = window_name(principal.tenant_id, principal.subject)
        limit = principal.requests_per_minute or LIMIT_WITHOUT_PLAN
        decision = await self._limiter.take(name, limit)
        if not decision.allowed:
            raise rate_limited(decision, {"retry-after": str(decision.retry_after)})
        if not starts:
            return
        limit = tokens_per_minute(principal.plan, principal.requests_per_minute)
        decision = await self._tokens.take(name, limit)
        if not decision.allowed:
            raise tokens_limited(decision, {"retry-after": str(decision.retry_after)})

    def _known(self, socket: Socket) -> Any:
        assert socket.principal is not None, "requests are taken after hello"
        return socket.principal


def shown(problem: Problem) -> dict[str, Any]:
    """What a client reads of a problem."""
    told: dict[str, Any] = {
        "code": problem.code,
        "status": problem.status,
        "message": problem.detail or problem.title,
    }
    if problem.errors:
        told["errors"] = problem.errors
    if "retry-after" in problem.headers:
        told["retry_after"] = int(problem.headers["retry-after"])
    return told


def _answer(request: schemas.Request, problem: Problem) -> bytes:
    return frames.message("res", id=request.id, ok=False, error=shown(problem))


def _after(kind: str, body: schemas.AfterBody | None) -> After | None:
    if body is None:
        return None
    if kind != "user":
        if body.cursor or body.epoch < 0 or body.seq < 0:
            raise invalid("/params/after", "give epoch and seq of the last event's frame")
        return body.epoch, body.seq - (kind == "conversation")  # the log counts from 0
    try:
        return Vector.parse(body.cursor)
    except ValueError:
        raise invalid("/params/after/cursor", "give the cursor of the last event's frame") from None
