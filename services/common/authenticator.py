"""A bearer token or API key to the principal it stands for, remembered for a while, forgotten on notice."""

import asyncio
import hashlib
import time
from collections import OrderedDict
from collections.abc import Callable
from typing import Final

import aiohttp
import msgspec
from redis.asyncio import Redis

from core.log import Logger
from services.common.errors import Problem, unavailable
from services.common.principal import HEADER, Principal, sign, system
from services.common.revocations import GRACE, Revocations, Revoked
from services.common.tokens import TokenError, TokenVerifier

KEY_PREFIX: Final = "sk_"
CACHE_SECONDS: Final = 30.0
REFUSED_SECONDS: Final = 2.0
MAX_ENTRIES: Final = 20_000
MAX_REFUSED: Final = 2_000
MAX_CREDENTIAL: Final = 4096
_LOG: Final = Logger("services.authenticator")


class Introspection(msgspec.Struct, frozen=True, omit_defaults=True):
    """Answer of `POST /internal/introspect {"key": …}` at users."""

    active: bool
    principal: Principal | None = None
    expires_in: float | None = None
    """Seconds until the key ends by itself; None where it does not."""


class _Entry(msgspec.Struct, gc=False):
    principal: Principal | None
    stored: float
    expires: float
    header: str = ""
    header_until: float = 0.0


def unauthenticated(detail: str) -> Problem:
    """401, the same for every reason that would help a guesser."""
    return Problem(
        401,
        "unauthenticated",
        "Not authenticated",
        detail,
        headers={"www-authenticate": 'Bearer realm="headrace"'},
    )


class Authenticator:
    """Turns a credential into a principal. Entries are found by SHA-256, never by the credential.

    Args:
        users_url: where introspection and the key set are.
        issuer: the `iss` that access tokens must carry.
        internal_key: signs the principal header.
        http: used for calls to users.
        cache: Redis for revocations; without it nothing is trusted longer than `GRACE` seconds.
    """

    def __init__(
        self,
        *,
        users_url: str,
        issuer: str,
        internal_key: bytes,
        http: aiohttp.ClientSession,
        cache: Redis | None,
    ) -> None:
        self._introspect_url = f"{users_url}/internal/introspect"
        self._sessions_url = f"{users_url}/internal/sessions"
        self._internal_key = internal_key
        self._http = http
        self._tokens = TokenVerifier(f"{users_url}/.well-known/jwks.json", issuer, http)
        self._entries: OrderedDict[bytes, _Entry] = OrderedDict()
        self._refused: OrderedDict[bytes, _Entry] = OrderedDict()
        self._asking: dict[bytes, asyncio.Task[_Entry]] = {}
        self._generation = 0
        self.revocations = Revocations(cache, self.drop) if cache is not None else None

    def start(self) -> None:
        if self.revocations is not None:
            self.revocations.start()

    async def close(self) -> None:
        if self.revocations is not None:
            await self.revocations.close()

    async def authenticate(self, credential: str) -> Principal:
        """The principal of a bearer token or API key.

        Raises:
            Problem: 401 for one that is not valid (now), 503 while users cannot be asked.
        """
        return (await self._entry(credential))[0]

    async def signed(self, credential: str, admit: Callable[[], None] | None = None) -> tuple[Principal, str]:
        """The same with a principal header that is valid for at least half a minute more.

        Args:
            admit: called before users are asked about a credential that was not good here before; may raise.
        """
        principal, entry = await self._entry(credential, admit)
        now = time.monotonic()
        if entry.header_until < now:
            entry.header, entry.header_until = sign(principal, self._internal_key), now + 25
        return principal, entry.header

    def drop(self, event: Revoked) -> None:
        """Forget what `event` names (all, where it names nothing). Answers that are on their way are used once and not kept."""
        self._generation += 1
        self._asking.clear()
        self._refused.clear()
        for digest in [key for key, entry in self._entries.items() if _concerns(event, entry.principal)]:
            del self._entries[digest]

    async def _entry(
        self, credential: str, admit: Callable[[], None] | None = None
    ) -> tuple[Principal, _Entry]:
        if not credential or len(credential) > MAX_CREDENTIAL or not credential.isascii():
            raise unauthenticated("The credential is not a token or key of this platform.")
        digest = hashlib.sha256(credential.encode()).digest()
        entry = self._entries.get(digest) or self._refused.get(digest)
        if entry is None or not self._trusted(entry):
            if admit is not None and digest not in self._entries:
                admit()
            entry = await self._ask_once(digest, credential)
        if entry.principal is None:
            raise unauthenticated("The token or key is unknown, expired or revoked.")
        return entry.principal, entry

    def _trusted(self, entry: _Entry) -> bool:
        now = time.monotonic()
        if entry.expires <= now:
            return False
        if now - entry.stored <= GRACE:
            return True
        return self.revocations is not None and self.revocations.is_alive(now)

    async def _ask_once(self, digest: bytes, credential: str) -> _Entry:
        """Requests that miss together ask users once."""
        task = self._asking.get(digest)
        if task is None:
            task = asyncio.create_task(self._ask(digest, credential))
            self._asking[digest] = task
            task.add_done_callback(lambda done: self._answered(digest, done))
        return await asyncio.shield(task)

    def _answered(self, digest: bytes, task: asyncio.Task[_Entry]) -> None:
        if self._asking.get(digest) is task:
            del self._asking[digest]
        if not task.cancelled():
            task.exception()  # read, so that a failure whose askers all left is not reported as lost

    async def _ask(self, digest: bytes, credential: str) -> _Entry:
        generation = self._generation
        now = time.monotonic()
        if credential.startswith(KEY_PREFIX):
            found = await self._introspect(credential)
            principal = found.principal if found.active else None
            seconds = CACHE_SECONDS if found.expires_in is None else min(CACHE_SECONDS, found.expires_in)
        else:
            try:
                principal, left = await self._tokens.verify(credential)
                seconds = min(CACHE_SECONDS, left)
                if principal.session_id and not await self._session_is_active(principal):
                    principal = None
            except TokenError:
                principal, seconds = None, 0.0
        # Refusals are kept apart: made-up keys must not push good ones out.
        kept, most = (self._refused, MAX_REFUSED) if principal is None else (self._entries, MAX_ENTRIES)
        entry = _Entry(principal, now, now + (REFUSED_SECONDS if principal is None else seconds))
        if generation == self._generation:
            if principal is None:
                self._entries.pop(digest, None)  # of the time when it was good: it would hide the refusal
            kept[digest] = entry
            while len(kept) > most:
                kept.popitem(last=False)
        return entry

    async def _session_is_active(self, principal: Principal) -> bool:
        """False for a token whose session ended or whose holder's role changed since.

        True where users cannot be asked: the signature is good, and the token ends by itself in minutes.
        """
        asked = {"session": principal.session_id, "generation": principal.generation}
        headers = {HEADER: sign(system("authenticator"), self._internal_key)}
        try:
            async with self._http.post(
                self._sessions_url, json=asked, headers=headers, timeout=aiohttp.ClientTimeout(total=2)
            ) as answer:
                if answer.status != 200:
                    return True
                return bool(msgspec.json.decode(await answer.read(), type=dict[str, bool])["active"])
        except (aiohttp.ClientError, TimeoutError, OSError) as error:
            _LOG.warn("session not checked", session=principal.session_id, error=type(error).__name__)
            return True

    async def _introspect(self, key: str) -> Introspection:
        headers = {HEADER: sign(system("authenticator"), self._internal_key)}
        try:
            async with self._http.post(
                self._introspect_url,
                json={"key": key},
                headers=headers,
                timeout=aiohttp.ClientTimeout(total=5),
            ) as answer:
                body = await answer.read()
                if answer.status != 200:
                    raise unavailable("The users service")
        except (aiohttp.ClientError, TimeoutError, OSError) as error:
            raise unavailable("The users service") from error
        return msgspec.json.decode(body, type=Introspection)


def _concerns(event: Revoked, principal: Principal | None) -> bool:
    if principal is None:
        return True
    return (
        (not event.key_id or event.key_id == principal.key_id)
        and (not event.subject or event.subject == principal.subject)
        and (not event.tenant_id or event.tenant_id == principal.tenant_id)
    )
