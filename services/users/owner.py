"""The first account of an installation: made at start while no person exists.

Two instances may start at once; a transaction lock lets one of them look and create, and the other find
what it made. The password is read only then: later changes of the setting change nothing.
"""

from typing import Final

from sqlalchemy import text

from core import audit
from core.database import Database
from core.ids import new_id
from core.log import Logger
from core.settings import DatabaseSettings, OwnerSettings, refuse_known_default
from services.users.passwords import MIN_CHARACTERS, Passwords
from services.users.roles import Role

SLUG: Final = "main"
"""The owner's own organisation."""
PLAN: Final = "enterprise"

_LOCK: Final = 0x4845_4144_0001
"""Key of the advisory lock that bootstrap takes."""
_log = Logger("users.owner")


class OwnerError(RuntimeError):
    """The first account cannot be made with these settings."""


async def ensure(settings: DatabaseSettings, owner: OwnerSettings, passwords: Passwords) -> bool:
    """Create owner and organisation `main` where no person exists; True where this call did it.

    Works as role `system` on connections of its own, because no organisation exists to work in yet.

    Raises:
        OwnerError: no account exists and the settings hold no usable first password.
    """
    database = Database(settings, role="system")
    try:
        async with database.writer() as connection:
            await connection.execute(text("select pg_advisory_xact_lock(:key)"), {"key": _LOCK})
            if (await connection.execute(text("select 1 from person limit 1"))).first() is not None:
                return False
            password = _first_password(owner)
            person_id, organisation_id = new_id("usr"), new_id("org")
            await connection.execute(
                text(
                    "insert into person (id, email, password_hash, platform_owner)"
                    " values (:id, :email, :hash, true)"
                ),
                {"id": person_id, "email": owner.owner_email.lower(), "hash": await passwords.hash(password)},
            )
            await connection.execute(
                text("insert into organisation (id, slug, name, plan) values (:id, :slug, :name, :plan)"),
                {"id": organisation_id, "slug": SLUG, "name": "Main", "plan": PLAN},
            )
            await connection.execute(
                text("insert into membership (tenant_id, person_id, role) values (:tenant, :person, :role)"),
                {"tenant": organisation_id, "person": person_id, "role": Role.OWNER.value},
            )
            await audit.record(
                connection,
                action="owner.create",
                actor="system",
                tenant_id=organisation_id,
                target=person_id,
                outcome="success",
                detail={"organization": organisation_id},
            )
    finally:
        await database.close()
    _log.info("owner account created", person=person_id, organization=organisation_id)
    return True


def _first_password(owner: OwnerSettings) -> str:
    if owner.owner_password is None:
        raise OwnerError("no account exists yet: set HEADRACE_OWNER_PASSWORD for the first start")
    try:
        password = refuse_known_default(owner.owner_password).get_secret_value()
    except ValueError as error:
        raise OwnerError(f"HEADRACE_OWNER_PASSWORD {error}") from None
    if len(password) < MIN_CHARACTERS:
        raise OwnerError(f"HEADRACE_OWNER_PASSWORD is too short: give at least {MIN_CHARACTERS} characters")
    return password
