"""SQL of accounts: registration, reset, sessions, devices, second factor.

As `store`: role `app`, on the caller's transaction. What belongs to a person shows after `act_for`; what a
token stands for is told by functions of the schema that take its hash.
"""

from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Final

from sqlalchemy import text
from sqlalchemy.exc import IntegrityError
from sqlalchemy.ext.asyncio import AsyncConnection

from services.users.store import Window, one

REGISTRATION: Final = timedelta(hours=24)
RESET: Final = timedelta(hours=1)
IDLE: Final = timedelta(days=30)
"""A session that nobody refreshes this long has ended."""
DEVICES: Final = 20
"""Devices that are known of a person; the one unused longest makes room."""


class EmailTakenError(Exception):
    """A person has this address."""


@dataclass(frozen=True, slots=True)
class Person:
    person_id: str
    email: str
    name: str
    password_hash: str
    platform_owner: bool


@dataclass(frozen=True, slots=True)
class Registration:
    email: str
    password_hash: str
    name: str
    organisation_name: str


@dataclass(frozen=True, slots=True)
class Family:
    """Whose refresh token it is."""

    person_id: str
    session_id: str
    tenant_id: str


@dataclass(frozen=True, slots=True)
class Session:
    tenant_id: str
    id: str
    person_id: str
    generation: int
    second_factor: bool
    user_agent: str
    created_at: datetime
    used_at: datetime
    expires_at: datetime
    ended_at: datetime | None


@dataclass(frozen=True, slots=True)
class Totp:
    secret: bytes
    confirmed_at: datetime | None
    last_step: int


_SESSION: Final = "tenant_id, id, person_id, generation, second_factor, user_agent, created_at, used_at, expires_at, ended_at"


async def act_for(connection: AsyncConnection, person_id: str) -> None:
    """Let the rest of the transaction see what belongs to this person."""
    await connection.execute(text("select set_config('app.person', :person, true)"), {"person": person_id})


# --- people -------------------------------------------------------------------------------------------


async def person(connection: AsyncConnection, person_id: str) -> Person | None:
    row = await one(connection, "select * from person_lookup(:id)", id=person_id)
    return None if row is None else Person(**row._mapping)


async def add_person(
    connection: AsyncConnection, person_id: str, email: str, password_hash: str, name: str
) -> None:
    """After `act_for(person_id)`. Raises: EmailTakenError (the transaction is then lost)."""
    try:
        await connection.execute(
            text("insert into person (id, email, password_hash, name) values (:id, :email, :hash, :name)"),
            {"id": person_id, "email": email, "hash": password_hash, "name": name},
        )
    except IntegrityError as error:
        if "person_email_key" in str(error.orig):
            raise EmailTakenError from None
        raise


async def set_password(connection: AsyncConnection, person_id: str, password_hash: str) -> None:
    await connection.execute(
        text("update person set password_hash = :hash, password_changed_at = now() where id = :id"),
        {"hash": password_hash, "id": person_id},
    )


async def set_name(connection: AsyncConnection, person_id: str, name: str) -> None:
    await connection.execute(
        text("update person set name = :name where id = :id"), {"name": name, "id": person_id}
    )


# --- registration and reset ---------------------------------------------------------------------------


async def add_registration(
    connection: AsyncConnection, token_sha256: bytes, registration: Registration, expires_at: datetime
) -> None:
    await connection.execute(
        text(
            "insert into registration (token_sha256, email, password_hash, name, organisation_name, expires_at)"
            " values (:token, :email, :hash, :name, :organisation, :expires)"
        ),
        {
            "token": token_sha256,
            "email": registration.email,
            "hash": registration.password_hash,
            "name": registration.name,
            "organisation": registration.organisation_name,
            "expires": expires_at,
        },
    )


async def find_registration(connection: AsyncConnection, token_sha256: bytes) -> Registration | None:
    row = await one(connection, "select * from registration_lookup(:token)", token=token_sha256)
    return None if row is None else Registration(**row._mapping)


async def take_registration(connection: AsyncConnection, token_sha256: bytes) -> bool:
    """Use the token up, with all others of that address; False where somebody was faster."""
    return bool(await connection.scalar(text("select registration_take(:token)"), {"token": token_sha256}))


async def add_reset(
    connection: AsyncConnection, token_sha256: bytes, person_id: str | None, expires_at: datetime
) -> None:
    """For nobody as well (None): it costs the same and is of no use."""
    await connection.execute(
        text(
            "insert into password_reset (token_sha256, person_id, expires_at) values (:token, :person, :expires)"
        ),
        {"token": token_sha256, "person": person_id, "expires": expires_at},
    )


async def take_reset(connection: AsyncConnection, token_sha256: bytes) -> str | None:
    """Use the token up, with all others of that person; whose it was."""
    found = await connection.scalar(text("select password_reset_take(:token)"), {"token": token_sha256})
    return None if found is None else str(found)


# --- sessions -----------------------------------------------------------------------------------------


async def add_session(
    connection: AsyncConnection,
    *,
    tenant_id: str,
    session_id: str,
    person_id: str,
    second_factor: bool,
    user_agent: str,
    expires_at: datetime,
) -> None:
    await connection.execute(
        text(
            "insert into login_session (tenant_id, id, person_id, second_factor, user_agent, expires_at)"
            " values (:tenant, :id, :person, :second_factor, :user_agent, :expires)"
        ),
        {
            "tenant": tenant_id,
            "id": session_id,
            "person": person_id,
            "second_factor": second_factor,
            "user_agent": user_agent,
            "expires": expires_at,
        },
    )


async def add_refresh(
    connection: AsyncConnection, token_sha256: bytes, person_id: str, session_id: str
) -> None:
    await connection.execute(
        text(
            "insert into refresh_token (token_sha256, person_id, session_id) values (:token, :person, :session)"
        ),
        {"token": token_sha256, "person": person_id, "session": session_id},
    )


async def find_family(connection: AsyncConnection, token_sha256: bytes) -> Family | None:
    row = await one(connection, "select * from refresh_lookup(:token)", token=token_sha256)
    return None if row is None else Family(**row._mapping)


async def lock_session(connection: AsyncConnection, session_id: str) -> Session | None:
    """The session, locked: of two uses of one refresh token the second waits and sees the first."""
    row = await one(
        connection, f"select {_SESSION} from login_session where id = :id for update", id=session_id
    )
    return None if row is None else Session(**row._mapping)


async def use_refresh(connection: AsyncConnection, token_sha256: bytes) -> bool:
    """Mark the token as used; False where it was already."""
    done = await connection.execute(
        text("update refresh_token set used_at = now() where token_sha256 = :token and used_at is null"),
        {"token": token_sha256},
    )
    return done.rowcount == 1


async def prolong(connection: AsyncConnection, session_id: str, expires_at: datetime) -> None:
    await connection.execute(
        text("update login_session set used_at = now(), expires_at = :expires where id = :id"),
        {"expires": expires_at, "id": session_id},
    )


async def end_sessions(
    connection: AsyncConnection,
    reason: str,
    *,
    person_id: str,
    session_id: str | None = None,
    tenant_id: str | None = None,
    but: str | None = None,
) -> list[str]:
    """End the person's sessions: all, one, those in one organisation, or all but one. Returns their ids."""
    rows = await connection.execute(
        text(
            """
            update login_session set ended_at = now(), end_reason = :reason
            where person_id = :person and ended_at is null
              and (cast(:session as text) is null or id = :session)
              and (cast(:tenant as text) is null or tenant_id = :tenant)
              and (cast(:but as text) is null or id <> :but)
            returning id
            """
        ),
        {"reason": reason, "person": person_id, "session": session_id, "tenant": tenant_id, "but": but},
    )
    return [str(row.id) for row in rows]


async def renew_generation(connection: AsyncConnection, tenant_id: str, person_id: str) -> None:
    """Access tokens given so far in this organisation are good no more; a refresh brings new ones."""
    await connection.execute(
        text(
            "update login_session set generation = generation + 1"
            " where tenant_id = :tenant and person_id = :person and ended_at is null"
        ),
        {"tenant": tenant_id, "person": person_id},
    )


async def page_of_sessions(connection: AsyncConnection, person_id: str, window: Window) -> list[Session]:
    """Sessions of the person that have not ended."""
    rows = await connection.execute(
        text(
            f"""
            select {_SESSION} from login_session
            where person_id = :person and ended_at is null and expires_at > now()
              and (cast(:above as text) is null or id > :above) and (cast(:below as text) is null or id < :below)
            order by case when :newest_first then id end desc, id limit :limit
            """
        ),
        {"person": person_id, **window.parameters()},
    )
    return [Session(**row._mapping) for row in rows]


async def session_is_active(connection: AsyncConnection, session_id: str, generation: int) -> bool:
    return bool(
        await connection.scalar(
            text("select session_is_active(:id, :generation)"), {"id": session_id, "generation": generation}
        )
    )


# --- devices and places -------------------------------------------------------------------------------


async def device(connection: AsyncConnection, person_id: str, token_sha256: bytes) -> str | None:
    """Id of the device that holds this token."""
    row = await one(
        connection,
        "select id from login_device where person_id = :person and token_sha256 = :token",
        person=person_id,
        token=token_sha256,
    )
    return None if row is None else str(row.id)


async def knows_place(connection: AsyncConnection, person_id: str, place: bytes) -> bool:
    row = await one(
        connection,
        "select 1 from login_place where person_id = :person and place = :place",
        person=person_id,
        place=place,
    )
    return row is not None


async def add_device(
    connection: AsyncConnection, person_id: str, device_id: str, token_sha256: bytes
) -> None:
    await connection.execute(
        text("insert into login_device (person_id, id, token_sha256) values (:person, :id, :token)"),
        {"person": person_id, "id": device_id, "token": token_sha256},
    )
    await connection.execute(
        text(
            "delete from login_device where person_id = :person and id not in ("
            "select id from login_device where person_id = :person order by used_at desc, id desc limit :most)"
        ),
        {"person": person_id, "most": DEVICES},
    )


async def used_device(connection: AsyncConnection, person_id: str, device_id: str) -> None:
    await connection.execute(
        text("update login_device set used_at = now() where person_id = :person and id = :id"),
        {"person": person_id, "id": device_id},
    )


async def remember_place(connection: AsyncConnection, person_id: str, place: bytes) -> None:
    await connection.execute(
        text(
            "insert into login_place (person_id, place) values (:person, :place)"
            " on conflict (person_id, place) do update set used_at = now()"
        ),
        {"person": person_id, "place": place},
    )


async def forget_devices(connection: AsyncConnection, person_id: str) -> None:
    """Nothing is known of the person's devices and networks any more."""
    await connection.execute(
        text("delete from login_device where person_id = :person"), {"person": person_id}
    )
    await connection.execute(text("delete from login_place where person_id = :person"), {"person": person_id})


# --- second factor ------------------------------------------------------------------------------------


async def lock_totp(connection: AsyncConnection, person_id: str) -> Totp | None:
    """The person's second factor, locked until the end of the transaction; not yet confirmed as well."""
    row = await one(
        connection,
        "select secret, confirmed_at, last_step from person_totp where person_id = :person for update",
        person=person_id,
    )
    return None if row is None else Totp(bytes(row.secret), row.confirmed_at, row.last_step)


async def has_totp(connection: AsyncConnection, person_id: str) -> bool:
    row = await one(
        connection,
        "select 1 from person_totp where person_id = :person and confirmed_at is not null",
        person=person_id,
    )
    return row is not None


async def put_totp(connection: AsyncConnection, person_id: str, secret: bytes) -> bool:
    """Keep an unconfirmed secret; False where the person has a confirmed one."""
    done = await connection.execute(
        text(
            "insert into person_totp (person_id, secret) values (:person, :secret)"
            " on conflict (person_id) do update set secret = excluded.secret, created_at = now(), last_step = 0"
            " where person_totp.confirmed_at is null"
        ),
        {"person": person_id, "secret": secret},
    )
    return done.rowcount == 1


async def used_step(connection: AsyncConnection, person_id: str, step: int, *, confirm: bool = False) -> None:
    await connection.execute(
        text(
            "update person_totp set last_step = :step,"
            " confirmed_at = case when :confirm then now() else confirmed_at end where person_id = :person"
        ),
        {"step": step, "confirm": confirm, "person": person_id},
    )


async def drop_totp(connection: AsyncConnection, person_id: str) -> None:
    await connection.execute(text("delete from person_totp where person_id = :person"), {"person": person_id})
    await connection.execute(
        text("delete from recovery_code where person_id = :person"), {"person": person_id}
    )


async def put_recovery_codes(connection: AsyncConnection, person_id: str, hashes: list[bytes]) -> None:
    """Instead of those there were."""
    await connection.execute(
        text("delete from recovery_code where person_id = :person"), {"person": person_id}
    )
    await connection.execute(
        text("insert into recovery_code (person_id, code_sha256) values (:person, :code)"),
        [{"person": person_id, "code": code} for code in hashes],
    )


async def use_recovery_code(connection: AsyncConnection, person_id: str, code_sha256: bytes) -> bool:
    done = await connection.execute(
        text(
            "update recovery_code set used_at = now()"
            " where person_id = :person and code_sha256 = :code and used_at is null"
        ),
        {"person": person_id, "code": code_sha256},
    )
    return done.rowcount == 1


async def recovery_codes_left(connection: AsyncConnection, person_id: str) -> int:
    return int(
        await connection.scalar(
            text("select count(*) from recovery_code where person_id = :person and used_at is null"),
            {"person": person_id},
        )
        or 0
    )


async def forget_old(connection: AsyncConnection) -> int:
    """Delete what nobody needs any more, of everybody; how many rows went."""
    return int(await connection.scalar(text("select forget_old_accounts()")) or 0)
