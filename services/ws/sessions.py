"""Who a socket belongs to, and for how long that was shown."""

import time
from collections import deque
from dataclasses import dataclass
from typing import Final

from redis.exceptions import RedisError

from services.common.authenticator import Authenticator
from services.common.errors import Problem
from services.common.principal import Principal
from services.common.revocations import Revoked
from services.ws.frames import AUTH
from services.ws.tickets import SECONDS as TICKET_SECONDS
from services.ws.tickets import Tickets

TICKET_SESSION: Final = 900.0
"""Seconds that a ticket carries a socket: as long as an access token lives."""
CREDENTIAL_SESSION: Final = 60.0
"""Seconds until a credential is looked at again; a notice of its revocation comes first."""
TRY_LATER: Final = 1013


class SessionError(Exception):
    """Refused, with the code and reason to close with."""

    def __init__(self, code: int, reason: str) -> None:
        super().__init__(f"{code} {reason}")
        self.code, self.reason = code, reason


@dataclass(frozen=True, slots=True)
class Session:
    principal: Principal
    until: float
    """Monotonic time."""
    credential: str = ""


class Sessions:
    """Opens sessions by ticket or credential, and remembers what was revoked while a ticket may be on its way."""

    def __init__(self, tickets: Tickets, authenticator: Authenticator) -> None:
        self._tickets, self._authenticator = tickets, authenticator
        self._revoked: deque[tuple[float, Revoked]] = deque()

    async def begin(self, ticket: str, credential: str) -> Session:
        """Raises: SessionError."""
        if ticket:
            return await self._by_ticket(ticket)
        try:
            principal = await self._authenticator.authenticate(credential)
        except Problem as problem:
            code = AUTH if problem.status == 401 else TRY_LATER
            raise SessionError(code, problem.code) from None
        return Session(principal, time.monotonic() + CREDENTIAL_SESSION, credential)

    async def _by_ticket(self, ticket: str) -> Session:
        try:
            found = await self._tickets.redeem(ticket)
        except (RedisError, OSError, TimeoutError):
            raise SessionError(TRY_LATER, "tickets cannot be checked now") from None
        if found is None:
            raise SessionError(AUTH, "the ticket is unknown, expired or used")
        principal, issued = found
        if any(at >= issued and _names(event, principal) for at, event in self._revoked):
            raise SessionError(AUTH, "revoked: get a new ticket")
        return Session(principal, time.monotonic() + TICKET_SESSION)

    def revoked(self, event: Revoked) -> None:
        """Tickets that were issued before this moment to whom it names are no longer good."""
        now = time.time()
        self._revoked.append((now, event))
        while self._revoked and self._revoked[0][0] < now - 2 * TICKET_SECONDS:
            self._revoked.popleft()


def _names(event: Revoked, principal: Principal) -> bool:
    return (
        (not event.key_id or event.key_id == principal.key_id)
        and (not event.subject or event.subject == principal.subject)
        and (not event.tenant_id or event.tenant_id == principal.tenant_id)
    )
