"""Whose usage a request is about."""

import re
from typing import Final

from core.database import Database, tenant
from services.billing import store
from services.common.auth import Principal
from services.common.errors import Problem, not_found

_NAME: Final = re.compile(r"[a-z0-9][a-z0-9_-]{0,127}", re.ASCII)


class Tenants:
    """Resolves `?tenant=`: an organisation's id or slug."""

    def __init__(self, app: Database, system: Database) -> None:
        self._app, self._system = app, system

    async def resolve(self, principal: Principal, wanted: str | None) -> str:
        """Id of the organisation that the caller may read: its own, or any for the platform's owner.

        Raises:
            Problem: 404 for one that is not there or is somebody else's, 422 where none is named and
                the caller has none.
        """
        if wanted is None or wanted == principal.tenant_id:
            return own_tenant(principal)
        found = await self._find(principal, wanted) if _NAME.fullmatch(wanted) else None
        if found is None:
            raise not_found("organisation")
        return found

    async def _find(self, principal: Principal, wanted: str) -> str | None:
        if principal.platform_owner or principal.kind == "system":
            async with self._system.reader() as connection:
                return await store.find_tenant(connection, wanted)
        with tenant(own_tenant(principal)):
            async with self._app.reader() as connection:
                return await store.find_tenant(connection, wanted)


def own_tenant(principal: Principal) -> str:
    """Raises: Problem 422 `tenant_required`."""
    if not principal.tenant_id:
        raise Problem(
            422,
            "tenant_required",
            "Which organisation?",
            "You belong to no organisation; name one with `?tenant=`.",
        )
    return principal.tenant_id
