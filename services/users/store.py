"""SQL of the users service. Every function works on the caller's transaction.

All of it runs as role `app`. What belongs to one organisation runs inside `with tenant(id):` and row-level
security decides what exists. Look-ups before a tenant is known run inside `with tenant(NOBODY):`, where no
table shows a row and only the SECURITY DEFINER functions of the schema answer.
"""

from dataclasses import asdict, dataclass
from datetime import datetime
from typing import Any, Final, Literal

from sqlalchemy import Row, text
from sqlalchemy.exc import IntegrityError
from sqlalchemy.ext.asyncio import AsyncConnection

from core.audit import NO_TENANT
from services.users.roles import Role

NOBODY: Final = NO_TENANT
"""No organisation has this id: what happens before, or without, an organisation."""


class SlugTakenError(Exception):
    """Another organisation has this slug."""


class UnknownPlanError(Exception):
    """No plan has this code."""


@dataclass(frozen=True, slots=True)
class Window:
    """A part of a list ordered by id, which is by age: ids above and below (excluded), at most `limit` rows."""

    limit: int
    above: str | None = None
    below: str | None = None
    newest_first: bool = False

    def parameters(self) -> dict[str, object]:
        return asdict(self)


@dataclass(frozen=True, slots=True)
class Organisation:
    id: str
    slug: str
    name: str
    plan: str
    requests_per_minute: int
    usage_retention_days: int
    audit_retention_days: int
    created_at: datetime


@dataclass(frozen=True, slots=True)
class Login:
    """What is known of an e-mail address before the password is checked."""

    person_id: str
    password_hash: str
    platform_owner: bool


@dataclass(frozen=True, slots=True)
class Membership:
    tenant_id: str
    slug: str
    role: str
    plan: str
    requests_per_minute: int


@dataclass(frozen=True, slots=True)
class Member:
    person_id: str
    email: str
    name: str
    role: str
    created_at: datetime


@dataclass(frozen=True, slots=True)
class ApiKey:
    """A key as it may be shown: the secret is not here."""

    id: str
    public_id: str
    name: str
    scopes: tuple[str, ...]
    created_by: str
    created_at: datetime
    expires_at: datetime | None
    revoked_at: datetime | None
    rotated_to: str | None

    def state(self, now: datetime) -> Literal["active", "expired", "revoked"]:
        if self.revoked_at is not None:
            return "revoked"
        return "expired" if self.expires_at is not None and self.expires_at <= now else "active"


@dataclass(frozen=True, slots=True)
class KeyProof:
    """What introspection needs of a key: whose it is and the hash that proves it."""

    tenant_id: str
    id: str
    key_sha256: bytes
    scopes: tuple[str, ...]
    expires_at: datetime | None
    revoked_at: datetime | None
    plan: str
    requests_per_minute: int


_ORGANISATION: Final = """
    select o.id, o.slug, o.name, o.plan, p.requests_per_minute, p.usage_retention_days, p.audit_retention_days,
           o.created_at
    from organisation o join plan p on p.code = o.plan
"""
_MEMBER: Final = """
    select m.person_id, p.email, p.name, m.role, m.created_at from membership m join person p on p.id = m.person_id
"""
_KEY: Final = "id, public_id, name, scopes, created_by, created_at, expires_at, revoked_at, rotated_to"


# --- before a tenant is known -------------------------------------------------------------------------


async def find_login(connection: AsyncConnection, email: str) -> Login | None:
    row = await one(connection, "select * from login_lookup(:email)", email=email)
    return None if row is None else Login(**row._mapping)


async def memberships(connection: AsyncConnection, person_id: str) -> list[Membership]:
    """Where a person belongs, oldest membership first."""
    rows = await connection.execute(text("select * from memberships_of(:id)"), {"id": person_id})
    return [Membership(**row._mapping) for row in rows]


async def find_organisation(connection: AsyncConnection, slug_or_id: str, role: str) -> Membership | None:
    """Any organisation, as if with `role`: only for the owner of the platform."""
    row = await one(connection, "select * from organisation_lookup(:wanted)", wanted=slug_or_id)
    return None if row is None else Membership(role=role, **row._mapping)


async def page_of_organisations(
    connection: AsyncConnection, window: Window, *, person_id: str | None, slug: str | None
) -> list[Organisation]:
    """The organisations of a person, or of everybody (None)."""
    rows = await connection.execute(
        text(
            "select * from organisation_page(cast(:person as text), cast(:slug as text), cast(:above as text),"
            " cast(:below as text), cast(:newest_first as boolean), cast(:limit as integer))"
        ),
        {"person": person_id, "slug": slug, **window.parameters()},
    )
    return [Organisation(**row._mapping) for row in rows]


async def find_key(connection: AsyncConnection, public_id: str) -> KeyProof | None:
    row = await one(connection, "select * from api_key_lookup(:public_id)", public_id=public_id)
    if row is None:
        return None
    return KeyProof(**{**row._mapping, "scopes": tuple(row.scopes)})


# --- inside one organisation --------------------------------------------------------------------------


async def organisation(connection: AsyncConnection, organisation_id: str) -> Organisation | None:
    row = await one(connection, f"{_ORGANISATION} where o.id = :id", id=organisation_id)
    return None if row is None else Organisation(**row._mapping)


async def go_on_inside(connection: AsyncConnection, tenant_id: str) -> None:
    """Let the rest of the transaction work for another organisation: the one it makes, then the caller's again."""
    await connection.execute(text("select set_config('app.tenant', :tenant, true)"), {"tenant": tenant_id})


async def create_organisation(
    connection: AsyncConnection, organisation_id: str, slug: str, name: str, plan: str
) -> Organisation:
    """Raises: SlugTakenError, UnknownPlanError (the transaction is then lost)."""
    try:
        await connection.execute(
            text("insert into organisation (id, slug, name, plan) values (:id, :slug, :name, :plan)"),
            {"id": organisation_id, "slug": slug, "name": name, "plan": plan},
        )
    except IntegrityError as error:
        if "organisation_slug_key" in str(error.orig):
            raise SlugTakenError(slug) from None
        if "organisation_plan_fkey" in str(error.orig):
            raise UnknownPlanError(plan) from None
        raise
    created = await organisation(connection, organisation_id)
    assert created is not None, "the row was inserted in this transaction"
    return created


async def email_of(connection: AsyncConnection, person_id: str) -> str | None:
    """E-mail of a person of the current organisation."""
    row = await one(connection, "select email from person where id = :id", id=person_id)
    return None if row is None else str(row.email)


async def lock_owners(connection: AsyncConnection, organisation_id: str) -> set[str]:
    """Ids of the owners, locked until the end of the transaction."""
    rows = await connection.execute(
        text(
            "select person_id from membership where tenant_id = :tenant and role = 'owner'"
            " order by person_id for update"
        ),
        {"tenant": organisation_id},
    )
    return {str(row.person_id) for row in rows}


async def lock_role(connection: AsyncConnection, organisation_id: str, person_id: str) -> Role | None:
    """The person's role, which nobody changes before the end of the transaction."""
    found = await connection.scalar(
        text("select role from membership where tenant_id = :tenant and person_id = :person for share"),
        {"tenant": organisation_id, "person": person_id},
    )
    return None if found is None else Role(found)


async def member(connection: AsyncConnection, organisation_id: str, person_id: str) -> Member | None:
    row = await one(
        connection,
        f"{_MEMBER} where m.tenant_id = :tenant and m.person_id = :person",
        tenant=organisation_id,
        person=person_id,
    )
    return None if row is None else Member(**row._mapping)


async def page_of_members(connection: AsyncConnection, organisation_id: str, window: Window) -> list[Member]:
    rows = await connection.execute(
        text(
            f"""
            {_MEMBER} where m.tenant_id = :tenant and (cast(:above as text) is null or m.person_id > :above)
              and (cast(:below as text) is null or m.person_id < :below)
            order by case when :newest_first then m.person_id end desc, m.person_id limit :limit
            """
        ),
        {"tenant": organisation_id, **window.parameters()},
    )
    return [Member(**row._mapping) for row in rows]


async def add_member(connection: AsyncConnection, organisation_id: str, person_id: str, role: str) -> None:
    """Who is a member keeps the role there was."""
    await connection.execute(
        text(
            "insert into membership (tenant_id, person_id, role) values (:tenant, :person, :role)"
            " on conflict (tenant_id, person_id) do nothing"
        ),
        {"tenant": organisation_id, "person": person_id, "role": str(role)},
    )


async def set_role(connection: AsyncConnection, organisation_id: str, person_id: str, role: str) -> None:
    await connection.execute(
        text("update membership set role = :role where tenant_id = :tenant and person_id = :person"),
        {"role": str(role), "tenant": organisation_id, "person": person_id},
    )


async def remove_member(connection: AsyncConnection, organisation_id: str, person_id: str) -> None:
    await connection.execute(
        text("delete from membership where tenant_id = :tenant and person_id = :person"),
        {"tenant": organisation_id, "person": person_id},
    )


async def insert_key(
    connection: AsyncConnection,
    *,
    tenant_id: str,
    key_id: str,
    public_id: str,
    name: str,
    key_sha256: bytes,
    scopes: tuple[str, ...],
    created_by: str,
    expires_at: datetime | None,
) -> ApiKey:
    row = await one(
        connection,
        f"""
        insert into api_key (tenant_id, id, public_id, name, key_sha256, scopes, created_by, expires_at)
        values (:tenant_id, :key_id, :public_id, :name, :key_sha256, :scopes, :created_by, :expires_at)
        returning {_KEY}
        """,
        tenant_id=tenant_id,
        key_id=key_id,
        public_id=public_id,
        name=name,
        key_sha256=key_sha256,
        scopes=list(scopes),
        created_by=created_by,
        expires_at=expires_at,
    )
    assert row is not None, "insert … returning gives its row"
    return _key(row)


async def page_of_keys(connection: AsyncConnection, organisation_id: str, window: Window) -> list[ApiKey]:
    """Keys of the organisation, also those that ended."""
    rows = await connection.execute(
        text(
            f"""
            select {_KEY} from api_key
            where tenant_id = :tenant and (cast(:above as text) is null or id > :above)
              and (cast(:below as text) is null or id < :below)
            order by case when :newest_first then id end desc, id limit :limit
            """
        ),
        {"tenant": organisation_id, **window.parameters()},
    )
    return [_key(row) for row in rows]


async def lock_key(connection: AsyncConnection, organisation_id: str, key_id: str) -> ApiKey | None:
    """The key, locked until the end of the transaction: of two rotations one waits and sees the other's."""
    row = await one(
        connection,
        f"select {_KEY} from api_key where tenant_id = :tenant and id = :id for update",
        tenant=organisation_id,
        id=key_id,
    )
    return None if row is None else _key(row)


async def end_key(
    connection: AsyncConnection,
    organisation_id: str,
    key_id: str,
    *,
    at: datetime,
    rotated_to: str | None = None,
) -> None:
    """Revoke at once (`rotated_to` is kept for the reader of the list)."""
    await connection.execute(
        text(
            "update api_key set revoked_at = :at, rotated_to = coalesce(cast(:next as text), rotated_to)"
            " where tenant_id = :tenant and id = :id"
        ),
        {"at": at, "next": rotated_to, "tenant": organisation_id, "id": key_id},
    )


async def expire_key(
    connection: AsyncConnection, organisation_id: str, key_id: str, *, at: datetime, rotated_to: str
) -> None:
    """Let a rotated key live until `at`, never longer than it had."""
    await connection.execute(
        text(
            "update api_key set expires_at = least(expires_at, cast(:at as timestamptz)), rotated_to = :next"
            " where tenant_id = :tenant and id = :id"
        ),
        {"at": at, "next": rotated_to, "tenant": organisation_id, "id": key_id},
    )


def _key(row: Row[Any]) -> ApiKey:
    return ApiKey(**{**row._mapping, "scopes": tuple(row.scopes)})


async def one(connection: AsyncConnection, sql: str, **parameters: object) -> Row[Any] | None:
    """The row of a statement that gives at most one."""
    return (await connection.execute(text(sql), parameters)).one_or_none()
