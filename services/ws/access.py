"""Who may follow what, asked once and remembered for a while."""

import asyncio
import time
from collections import OrderedDict
from functools import partial
from typing import Final

from services.common.errors import Problem, not_found
from services.common.principal import Principal
from services.ws.agents import Agents
from services.ws.schemas import Owner

SCOPE: Final = "agents:read"
SECONDS: Final = 10.0
_ENTRIES: Final = 20_000


class Access:
    """Whose runs and conversations are; a foreign one looks as if it were not there."""

    def __init__(self, agents: Agents) -> None:
        self._agents = agents
        self._known: OrderedDict[tuple[str, str], tuple[float, Owner]] = OrderedDict()
        self._asked: dict[tuple[str, str], asyncio.Task[Owner | None]] = {}

    async def check(self, principal: Principal, kind: str, identity: str) -> Owner:
        """The owner of what `principal` may follow.

        Raises:
            Problem: 403 `missing_scope`, 404 for what is not there or somebody else's, 503.
        """
        if not principal.may(SCOPE):
            raise Problem(403, "missing_scope", "Not allowed", f"This needs the scope {SCOPE}.")
        if kind == "user":
            if identity != principal.subject:
                raise not_found("user")
            return Owner(tenant=principal.tenant_id, user=identity)
        owner = await self._owner(kind, identity)
        if owner is None or owner.tenant != principal.tenant_id or not _sees(principal, owner.user):
            raise not_found(kind)
        return owner

    def forget(self) -> None:
        """Ask again for everything."""
        self._known.clear()

    async def _owner(self, kind: str, identity: str) -> Owner | None:
        key, now = (kind, identity), time.monotonic()
        known = self._known.get(key)
        if known is not None and now - known[0] < SECONDS:
            return known[1]
        joined = key in self._asked
        owner = await self._asking(key)
        if joined and not _is_settled(kind, owner):
            owner = await self._asking(key)  # by a question that was asked after we came
        return owner

    async def _asking(self, key: tuple[str, str]) -> Owner | None:
        """Once for all who ask meanwhile, and to its end also where they are gone: clients who come back
        faster than it is answered would otherwise keep agents busy with questions nobody waits for."""
        asked = self._asked.get(key)
        if asked is None:
            asked = self._asked[key] = asyncio.create_task(self._ask(key))
            asked.add_done_callback(partial(self._answered, key))
        return await asyncio.shield(asked)

    async def _ask(self, key: tuple[str, str]) -> Owner | None:
        owner = await self._agents.owner(*key)
        if owner is not None and _is_settled(key[0], owner):
            self._known[key] = (time.monotonic(), owner)
            if len(self._known) > _ENTRIES:
                self._known.popitem(last=False)
        return owner

    def _answered(self, key: tuple[str, str], asked: asyncio.Task[Owner | None]) -> None:
        del self._asked[key]
        if not asked.cancelled():
            asked.exception()  # whoever waits hears of it; perhaps nobody does


def _is_settled(kind: str, owner: Owner | None) -> bool:
    """Whether it may be remembered. A run that has just begun does not know yet where its first event
    stands: remembered like that, it could not be resumed beyond memory for seconds."""
    return owner is not None and (kind != "run" or owner.first is not None)


def _sees(principal: Principal, owner: str) -> bool:
    """As over REST: one's own, those of all keys for a key, all for who holds `org:admin`."""
    shared = principal.kind == "api_key" and owner.startswith("key_")
    return owner == principal.subject or shared or principal.may("org:admin")
