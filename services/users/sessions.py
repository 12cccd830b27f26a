"""Sessions: a login, the refresh tokens that continue it one after the other, and its end.

A refresh token works once and brings the next one. One that comes a second time was copied by somebody:
whoever sends it, the whole session ends, because nobody can tell the thief from the owner. So a client
must not send one token twice at the same time, and logs in again where an answer was lost.

Access tokens carry their session and its generation. Gateways ask here when they see one first and each
half minute after, and hear of every end at once, so a logout or a changed role works within 2 seconds.
"""

from datetime import timedelta
from typing import Any, Final

from redis.asyncio import Redis
from redis.exceptions import RedisError
from sqlalchemy.ext.asyncio import AsyncConnection

from core import audit
from core.clock import now
from core.database import Database, tenant
from core.ids import new_id
from core.log import Logger
from services.common.errors import Problem, not_found
from services.common.paging import Page, listing
from services.common.principal import Principal
from services.common.revocations import Revoked, publish
from services.users import account_schemas as shapes
from services.users import account_store, one_time, store
from services.users.account_store import IDLE, Person, Session
from services.users.lockout import Caller
from services.users.organizations import window
from services.users.roles import Role, scopes_of
from services.users.store import NOBODY, Membership
from services.users.tokens import LIFETIME, Subject, Tokens

LONGEST: Final = timedelta(days=90)
"""After this long everybody logs in again, however often the session was refreshed."""
_log: Final = Logger("users.sessions")


class Sessions:
    def __init__(self, database: Database, cache: Redis, tokens: Tokens) -> None:
        self._database, self._cache, self._tokens = database, cache, tokens

    async def open(
        self,
        connection: AsyncConnection,
        person: Person,
        membership: Membership,
        caller: Caller,
        *,
        second_factor: bool,
        device_token: str | None = None,
    ) -> shapes.Token:
        """A new session with its first tokens, in the caller's transaction (of the membership's tenant, `act_for`)."""
        session_id, refresh = new_id("ses"), one_time.new("refresh")
        await account_store.add_session(
            connection,
            tenant_id=membership.tenant_id,
            session_id=session_id,
            person_id=person.person_id,
            second_factor=second_factor,
            user_agent=caller.user_agent[:200],
            expires_at=now() + IDLE,
        )
        await account_store.add_refresh(connection, refresh.sha256, person.person_id, session_id)
        answer = self._token(person, membership, session_id, 0, refresh.text, IDLE)
        if device_token is not None:
            answer["device_token"] = device_token
        return answer

    async def refresh(self, text: str) -> shapes.Token:
        """The next access and refresh token.

        Raises:
            Problem: 401 `refresh_refused` where the token is unknown, used, or its session has ended.
        """
        if not one_time.looks_like("refresh", text):
            raise _refused()
        used = one_time.digest(text)
        with tenant(NOBODY):
            async with self._database.reader() as connection:
                family = await account_store.find_family(connection, used)
                if family is None:
                    raise _refused()
                person = await account_store.person(connection, family.person_id)
                membership = await self._membership(connection, person, family.tenant_id)
        fresh = one_time.new("refresh")
        with tenant(family.tenant_id):
            async with self._database.writer() as connection:
                await account_store.act_for(connection, family.person_id)
                session = await account_store.lock_session(connection, family.session_id)
                instant = now()
                if session is None or session.ended_at is not None or session.expires_at <= instant:
                    raise _refused()
                reused = not await account_store.use_refresh(connection, used)
                if reused or person is None or membership is None:
                    await self._end_for_good(connection, session, "reused" if reused else "member")
                else:
                    expires = min(instant + IDLE, session.created_at + LONGEST)
                    await account_store.prolong(connection, session.id, expires)
                    await account_store.add_refresh(connection, fresh.sha256, person.person_id, session.id)
                    return self._token(
                        person, membership, session.id, session.generation, fresh.text, expires - instant
                    )
        await self.tell(family.person_id)
        raise _refused()

    async def logout(self, text: str) -> None:
        """End the session of this refresh token. An unknown one changes nothing and is answered alike."""
        if not one_time.looks_like("refresh", text):
            return
        with tenant(NOBODY):
            async with self._database.reader() as connection:
                family = await account_store.find_family(connection, one_time.digest(text))
        if family is not None:
            await self._end("auth.logout", "logout", family.person_id, family.tenant_id, family.session_id)

    async def logout_all(self, principal: Principal) -> None:
        """End every session of the caller, also this one. Raises: Problem 403 for what is no person."""
        person_id = a_person(principal)
        await self._end("auth.logout_all", "logout_all", person_id, principal.tenant_id)

    async def revoke(self, principal: Principal, session_id: str) -> None:
        """End one session of the caller. Raises: Problem 404, also for what is no person and has none."""
        person_id, tenant_id = principal.subject, principal.tenant_id
        if principal.kind != "user" or not await self._end(
            "session.revoke", "revoked", person_id, tenant_id, session_id
        ):
            raise not_found("session")

    async def page(self, principal: Principal, page: Page) -> dict[str, Any]:
        """The caller's sessions in all organisations. Raises: Problem 403."""
        person_id = a_person(principal)
        with tenant(principal.tenant_id or NOBODY):
            async with self._database.reader() as connection:
                await account_store.act_for(connection, person_id)
                found = await account_store.page_of_sessions(connection, person_id, window(page))
        return listing([shapes.session(one, current=principal.session_id) for one in found], page)

    async def is_active(self, session_id: str, generation: int) -> bool:
        """Whether access tokens of this session and generation are good."""
        with tenant(NOBODY):
            async with self._database.reader() as connection:
                return await account_store.session_is_active(connection, session_id, generation)

    async def tell(self, person_id: str) -> None:
        """After the commit: gateways forget what they know of the person and ask again."""
        try:
            await publish(self._cache, Revoked("person.changed", subject=person_id))
        except (RedisError, OSError) as error:
            _log.warn("end of sessions not published", person=person_id, error=type(error).__name__)

    async def _end(
        self, action: str, reason: str, person_id: str, tenant_id: str, session_id: str | None = None
    ) -> bool:
        with tenant(tenant_id or NOBODY):
            async with self._database.writer() as connection:
                await account_store.act_for(connection, person_id)
                ended = await account_store.end_sessions(
                    connection, reason, person_id=person_id, session_id=session_id
                )
                if ended:
                    await audit.record(
                        connection,
                        action=action,
                        actor=person_id,
                        tenant_id=tenant_id or NOBODY,
                        target=session_id or person_id,
                        outcome="success",
                        detail={"sessions": str(len(ended))},
                    )
        if ended:
            await self.tell(person_id)
        return bool(ended)

    async def _end_for_good(self, connection: AsyncConnection, session: Session, reason: str) -> None:
        await account_store.end_sessions(
            connection, reason, person_id=session.person_id, session_id=session.id
        )
        await audit.record(
            connection,
            action="auth.refresh_refused",
            actor=session.person_id,
            tenant_id=session.tenant_id,
            target=session.id,
            outcome="denied",
            detail={"reason": reason},
        )

    async def _membership(
        self, connection: AsyncConnection, person: Person | None, tenant_id: str
    ) -> Membership | None:
        """What the person is there now: a role may have changed since the last token."""
        if person is None:
            return None
        for one in await store.memberships(connection, person.person_id):
            if one.tenant_id == tenant_id:
                return one
        if person.platform_owner:
            return await store.find_organisation(connection, tenant_id, Role.OWNER)
        return None

    def _token(
        self,
        person: Person,
        membership: Membership,
        session_id: str,
        generation: int,
        refresh: str,
        left: timedelta,
    ) -> shapes.Token:
        subject = Subject(
            person_id=person.person_id,
            tenant_id=membership.tenant_id,
            roles=(membership.role,),
            scopes=scopes_of(membership.role, platform_owner=person.platform_owner),
            plan=membership.plan,
            requests_per_minute=membership.requests_per_minute,
            platform_owner=person.platform_owner,
            session_id=session_id,
            generation=generation,
        )
        return shapes.Token(
            access_token=self._tokens.issue(subject),
            token_type="Bearer",  # noqa: S106
            expires_in=LIFETIME,
            refresh_token=refresh,
            refresh_expires_in=int(left.total_seconds()),
            session=session_id,
            device_token=None,
        )


def a_person(principal: Principal) -> str:
    """Id of the person who calls. Raises: Problem 403 for keys and parts of the platform."""
    if principal.kind != "user":
        raise Problem(403, "not_a_person", "Not allowed", "This is for people who are logged in.")
    return principal.subject


def _refused() -> Problem:
    return Problem(
        401,
        "refresh_refused",
        "Log in again",
        "The refresh token is unknown, was used before, or its session has ended. Log in again.",
    )
