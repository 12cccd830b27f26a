"""HTTP of accounts: login, sessions, registration, passwords, second factor."""

from typing import Annotated, Any

from fastapi import APIRouter, Depends, Request
from starlette.responses import JSONResponse, Response

from services.common.auth import require, require_system
from services.common.body import documented, json_body
from services.common.paging import PageQuery
from services.common.principal import Principal
from services.users import account_schemas as shapes
from services.users.lockout import Caller
from services.users.parts import UsersOf, known_shape

router = APIRouter()


async def caller_of(request: Request) -> Caller:
    """The client as the gateway saw it (it drops what the client claims), else the connection's other end."""
    forwarded = request.headers.get("x-forwarded-for", "")
    address = forwarded.rpartition(",")[2].strip() or (request.client.host if request.client else "")
    return Caller(address, request.headers.get("user-agent", ""))


async def _session_id(session_id: str) -> str:
    return known_shape("session", session_id)


CallerOf = Annotated[Caller, Depends(caller_of)]
Person = Annotated[Principal, Depends(require())]


def _no_store(response: Response) -> None:
    response.headers["cache-control"] = "no-store"


@router.post(
    "/api/v1/auth/login",
    tags=["auth"],
    response_model=shapes.Token,
    responses={202: {"model": shapes.MfaRequired, "description": "The second factor is missing"}},
    openapi_extra=documented(shapes.Login),
)
async def login(
    users: UsersOf, caller: CallerOf, body: Annotated[shapes.Login, Depends(json_body(shapes.Login))]
) -> Response:
    """Log in with e-mail and password: an access token for 15 minutes and a refresh token.

    202 with a challenge where the account has a second factor and `code` is missing. Keep
    `device_token` and send it with later logins: attempts of others cannot lock this device out.
    """
    answer = await users.logins.login(body, caller)
    status = 200 if "access_token" in answer else 202
    return JSONResponse(answer, status, {"cache-control": "no-store"})


@router.post("/api/v1/auth/challenge", tags=["auth"], openapi_extra=documented(shapes.Challenge))
async def challenge(
    users: UsersOf,
    caller: CallerOf,
    response: Response,
    body: Annotated[shapes.Challenge, Depends(json_body(shapes.Challenge))],
) -> shapes.Token:
    """The second step of a login: a code of the authenticator app, or a recovery code."""
    _no_store(response)
    return await users.logins.answer(body, caller)


@router.post("/api/v1/auth/refresh", tags=["auth"], openapi_extra=documented(shapes.Refresh))
async def refresh(
    users: UsersOf, response: Response, body: Annotated[shapes.Refresh, Depends(json_body(shapes.Refresh))]
) -> shapes.Token:
    """The next access and refresh token. Each refresh token works once; a second use ends the session."""
    _no_store(response)
    return await users.sessions.refresh(body.refresh_token)


@router.post("/api/v1/auth/logout", tags=["auth"], status_code=204, openapi_extra=documented(shapes.Refresh))
async def logout(
    users: UsersOf, body: Annotated[shapes.Refresh, Depends(json_body(shapes.Refresh))]
) -> Response:
    """End the session of a refresh token; its access tokens are refused within 2 seconds."""
    await users.sessions.logout(body.refresh_token)
    return Response(status_code=204)


@router.post("/api/v1/auth/logout-all", tags=["auth"], status_code=204)
async def logout_all(users: UsersOf, principal: Person) -> Response:
    """End all your sessions, also this one."""
    await users.sessions.logout_all(principal)
    return Response(status_code=204)


@router.get("/api/v1/sessions", tags=["auth"], response_model=shapes.Sessions)
async def list_sessions(users: UsersOf, principal: Person, page: PageQuery) -> dict[str, Any]:
    """Your sessions that have not ended."""
    return await users.sessions.page(principal, page)


@router.delete("/api/v1/sessions/{session_id}", tags=["auth"], status_code=204)
async def revoke_session(
    users: UsersOf, principal: Person, session_id: Annotated[str, Depends(_session_id)]
) -> Response:
    """End one of your sessions."""
    await users.sessions.revoke(principal, session_id)
    return Response(status_code=204)


@router.post(
    "/internal/sessions",
    tags=["internal"],
    dependencies=[Depends(require_system)],
    openapi_extra=documented(shapes.SessionCheck),
)
async def check_session(
    users: UsersOf, body: Annotated[shapes.SessionCheck, Depends(json_body(shapes.SessionCheck))]
) -> dict[str, bool]:
    """Whether access tokens of a session are good; for other parts of the platform only."""
    return {"active": await users.sessions.is_active(body.session, body.generation)}


@router.post(
    "/api/v1/auth/register", tags=["auth"], status_code=202, openapi_extra=documented(shapes.Register)
)
async def register(
    users: UsersOf, caller: CallerOf, body: Annotated[shapes.Register, Depends(json_body(shapes.Register))]
) -> shapes.Accepted:
    """Ask for an account. The answer is the same whether the address is known; a mail says how to go on."""
    return await users.accounts.register(body, caller)


@router.post(
    "/api/v1/auth/verify-email", tags=["auth"], status_code=201, openapi_extra=documented(shapes.Verify)
)
async def verify_email(
    users: UsersOf, body: Annotated[shapes.Verify, Depends(json_body(shapes.Verify))]
) -> shapes.Verified:
    """Make the account: the token of the mail and the password that was chosen."""
    return await users.accounts.verify(body)


@router.post("/api/v1/auth/forgot", tags=["auth"], status_code=202, openapi_extra=documented(shapes.Forgot))
async def forgot(
    users: UsersOf, caller: CallerOf, body: Annotated[shapes.Forgot, Depends(json_body(shapes.Forgot))]
) -> shapes.Accepted:
    """Ask for a mail with which a new password can be set. The answer is the same for an unknown address."""
    return await users.accounts.forgot(body, caller)


@router.post("/api/v1/auth/reset", tags=["auth"], openapi_extra=documented(shapes.Reset))
async def reset(
    users: UsersOf,
    caller: CallerOf,
    response: Response,
    body: Annotated[shapes.Reset, Depends(json_body(shapes.Reset))],
) -> shapes.WasReset:
    """Set a new password with the token of the mail. All sessions end; the second factor stays."""
    _no_store(response)
    return await users.accounts.reset(body, caller)


@router.post(
    "/api/v1/auth/password", tags=["auth"], status_code=204, openapi_extra=documented(shapes.ChangePassword)
)
async def change_password(
    users: UsersOf,
    caller: CallerOf,
    principal: Person,
    body: Annotated[shapes.ChangePassword, Depends(json_body(shapes.ChangePassword))],
) -> Response:
    """Change your password. All sessions but this one end."""
    await users.accounts.change_password(principal, body, caller)
    return Response(status_code=204)


@router.patch("/api/v1/me", tags=["auth"], status_code=204, openapi_extra=documented(shapes.Profile))
async def change_me(
    users: UsersOf, principal: Person, body: Annotated[shapes.Profile, Depends(json_body(shapes.Profile))]
) -> Response:
    """Change your name."""
    await users.accounts.rename(principal, body)
    return Response(status_code=204)


@router.get("/api/v1/auth/mfa", tags=["mfa"])
async def mfa(users: UsersOf, principal: Person) -> shapes.MfaState:
    """Whether you have a second factor, and how many recovery codes are left."""
    return await users.accounts.mfa(principal)


@router.post("/api/v1/auth/mfa/totp", tags=["mfa"], status_code=201, openapi_extra=documented(shapes.Enrol))
async def enrol(
    users: UsersOf,
    caller: CallerOf,
    principal: Person,
    response: Response,
    body: Annotated[shapes.Enrol, Depends(json_body(shapes.Enrol))],
) -> shapes.Enrolment:
    """A secret for an authenticator app. It counts only after it was confirmed with a code."""
    _no_store(response)
    return await users.accounts.enrol(principal, body, caller)


@router.post("/api/v1/auth/mfa/totp/confirm", tags=["mfa"], openapi_extra=documented(shapes.Confirm))
async def confirm(
    users: UsersOf,
    principal: Person,
    response: Response,
    body: Annotated[shapes.Confirm, Depends(json_body(shapes.Confirm))],
) -> shapes.RecoveryCodes:
    """Switch the second factor on with its first code. Recovery codes are shown here once."""
    _no_store(response)
    return await users.accounts.confirm(principal, body)


@router.post(
    "/api/v1/auth/mfa/totp/disable", tags=["mfa"], status_code=204, openapi_extra=documented(shapes.Disable)
)
async def disable(
    users: UsersOf,
    caller: CallerOf,
    principal: Person,
    body: Annotated[shapes.Disable, Depends(json_body(shapes.Disable))],
) -> Response:
    """Switch the second factor off: with the password and a code of it."""
    await users.accounts.disable(principal, body, caller)
    return Response(status_code=204)


@router.post("/api/v1/auth/mfa/recovery-codes", tags=["mfa"], openapi_extra=documented(shapes.Disable))
async def new_codes(
    users: UsersOf,
    caller: CallerOf,
    principal: Person,
    response: Response,
    body: Annotated[shapes.Disable, Depends(json_body(shapes.Disable))],
) -> shapes.RecoveryCodes:
    """Fresh recovery codes instead of the old ones."""
    _no_store(response)
    return await users.accounts.new_codes(principal, body, caller)
