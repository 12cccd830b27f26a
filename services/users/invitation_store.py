"""SQL of invitations; `store.py` says how it runs."""

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Final, Literal

from sqlalchemy import text
from sqlalchemy.ext.asyncio import AsyncConnection

from services.users.store import Window, one

_INVITATION: Final = "id, email, role, invited_by, created_at, expires_at, accepted_at, revoked_at"


@dataclass(frozen=True, slots=True)
class Invitation:
    """Without its token, which only the mail has."""

    id: str
    email: str
    role: str
    invited_by: str
    created_at: datetime
    expires_at: datetime
    accepted_at: datetime | None
    revoked_at: datetime | None

    def state(self, now: datetime) -> Literal["open", "accepted", "revoked", "expired"]:
        if self.accepted_at is not None:
            return "accepted"
        if self.revoked_at is not None:
            return "revoked"
        return "expired" if self.expires_at <= now else "open"


@dataclass(frozen=True, slots=True)
class OpenInvitation:
    """What the token of a mail stands for."""

    tenant_id: str
    id: str
    email: str
    role: str


async def find_invitation(connection: AsyncConnection, token_sha256: bytes) -> OpenInvitation | None:
    """The open invitation behind a token."""
    row = await one(connection, "select * from invitation_lookup(:token)", token=token_sha256)
    return None if row is None else OpenInvitation(**row._mapping)


async def add_invitation(
    connection: AsyncConnection,
    *,
    tenant_id: str,
    invitation_id: str,
    email: str,
    role: str,
    token_sha256: bytes,
    invited_by: str,
    expires_at: datetime,
) -> Invitation:
    row = await one(
        connection,
        f"""
        insert into invitation (tenant_id, id, email, role, token_sha256, invited_by, expires_at)
        values (:tenant_id, :invitation_id, :email, :role, :token_sha256, :invited_by, :expires_at)
        returning {_INVITATION}
        """,
        tenant_id=tenant_id,
        invitation_id=invitation_id,
        email=email,
        role=str(role),
        token_sha256=token_sha256,
        invited_by=invited_by,
        expires_at=expires_at,
    )
    assert row is not None, "insert … returning gives its row"
    return Invitation(**row._mapping)


async def page_of_invitations(
    connection: AsyncConnection, organisation_id: str, window: Window
) -> list[Invitation]:
    rows = await connection.execute(
        text(
            f"""
            select {_INVITATION} from invitation
            where tenant_id = :tenant and (cast(:above as text) is null or id > :above)
              and (cast(:below as text) is null or id < :below)
            order by case when :newest_first then id end desc, id limit :limit
            """
        ),
        {"tenant": organisation_id, **window.parameters()},
    )
    return [Invitation(**row._mapping) for row in rows]


async def lock_invitation(
    connection: AsyncConnection, organisation_id: str, invitation_id: str
) -> Invitation | None:
    row = await one(
        connection,
        f"select {_INVITATION} from invitation where tenant_id = :tenant and id = :id for update",
        tenant=organisation_id,
        id=invitation_id,
    )
    return None if row is None else Invitation(**row._mapping)


async def revoke_invitation(connection: AsyncConnection, organisation_id: str, invitation_id: str) -> None:
    await connection.execute(
        text(
            "update invitation set revoked_at = coalesce(revoked_at, now()) where tenant_id = :tenant and id = :id"
        ),
        {"tenant": organisation_id, "id": invitation_id},
    )


async def revoke_invitations_of(
    connection: AsyncConnection, organisation_id: str, person_id: str, kept: Sequence[str]
) -> list[Invitation]:
    """End the open invitations that a person made, but for those to the roles in `kept`; returns them."""
    rows = await connection.execute(
        text(
            f"""
            update invitation set revoked_at = now()
            where tenant_id = :tenant and invited_by = :person and not role = any(:kept)
              and accepted_at is null and revoked_at is null and expires_at > now()
            returning {_INVITATION}
            """
        ),
        {"tenant": organisation_id, "person": person_id, "kept": [str(role) for role in kept]},
    )
    return [Invitation(**row._mapping) for row in rows]


async def accept_invitation(
    connection: AsyncConnection, organisation_id: str, invitation_id: str, person_id: str
) -> bool:
    """Use the invitation up; False where it was, or ended meanwhile."""
    done = await connection.execute(
        text(
            "update invitation set accepted_at = now(), accepted_by = :person where tenant_id = :tenant and id = :id"
            " and accepted_at is null and revoked_at is null and expires_at > now()"
        ),
        {"person": person_id, "tenant": organisation_id, "id": invitation_id},
    )
    return done.rowcount == 1
