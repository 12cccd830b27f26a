"""Who calls: `me` and introspection of API keys."""

import hmac

from core.clock import now
from core.database import Database, tenant
from services.common.auth import Introspection
from services.common.errors import Problem
from services.common.principal import Principal
from services.users import account_store, keys, schemas, store
from services.users.store import NOBODY


class Identities:
    """`me` and introspection."""

    def __init__(self, database: Database) -> None:
        self._database = database

    async def me(self, principal: Principal) -> schemas.Me:
        """Who the caller is and what it may do. Raises: Problem 403 for parts of the platform."""
        if principal.kind == "system":
            raise Problem(403, "not_a_person", "Not allowed", "This is for people and API keys.")
        answer = schemas.Me(
            id=principal.subject,
            object=principal.kind,
            organization=principal.tenant_id,
            scopes=sorted(principal.scopes),
            platform_owner=principal.platform_owner,
            email=None,
            name="",
            memberships=[],
        )
        if principal.kind == "api_key":
            return answer
        with tenant(NOBODY):
            async with self._database.reader() as connection:
                found = await store.memberships(connection, principal.subject)
                person = await account_store.person(connection, principal.subject)
        answer["memberships"] = [schemas.membership(one) for one in found]
        if person is not None:
            answer["email"], answer["name"] = person.email, person.name
        return answer

    async def introspect(self, text: str) -> Introspection:
        """Whose key this is; inactive without a reason where it is wrong, expired or revoked.

        A key with a wrong checksum was never issued, so the database is not asked.
        """
        public_id = keys.public_id(text)
        if public_id is None:
            return Introspection(active=False)
        with tenant(NOBODY):
            async with self._database.reader() as connection:
                proof = await store.find_key(connection, public_id)
        if proof is None or not hmac.compare_digest(proof.key_sha256, keys.digest(text)):
            return Introspection(active=False)
        left = None if proof.expires_at is None else (proof.expires_at - now()).total_seconds()
        if proof.revoked_at is not None or (left is not None and left <= 0):
            return Introspection(active=False)
        return Introspection(
            active=True,
            principal=Principal(
                tenant_id=proof.tenant_id,
                subject=proof.id,
                kind="api_key",
                scopes=frozenset(proof.scopes),
                plan=proof.plan,
                requests_per_minute=proof.requests_per_minute,
                key_id=proof.id,
            ),
            expires_in=left,
        )
