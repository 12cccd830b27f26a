"""The second factor: codes of an authenticator app (TOTP, RFC 6238) and recovery codes.

The secret lies encrypted, bound to its person's row. A code is good for its own half minute and the two
beside it, and works once: the step of the last one is kept, so one that was looked over a shoulder is of
no use. Recovery codes are 80 random bits, kept as SHA-256, and work once.
"""

import hashlib
import hmac
import re
import secrets
import time
from typing import Final

import pyotp
from sqlalchemy.ext.asyncio import AsyncConnection

from core.security.fields import FieldCipher, Place
from services.users import account_store
from services.users.store import NOBODY

STEP: Final = 30
CODES: Final = 10
ISSUER: Final = "Headrace"

_ALPHABET: Final = "abcdefghijkmnpqrstuvwxyz23456789"
"""32 characters that are not mistaken for each other."""
_CODE: Final = re.compile(r"[0-9]{6}", re.ASCII)


class SecondFactor:
    """Makes and checks second factors. Every method works on the caller's transaction, after `act_for`."""

    def __init__(self, cipher: FieldCipher) -> None:
        self._cipher = cipher

    async def enrol(self, connection: AsyncConnection, person_id: str, email: str) -> tuple[str, str] | None:
        """(secret in base32, otpauth URI) of a factor that `confirm` will switch on; None where one is on."""
        secret = pyotp.random_base32()
        stored = self._cipher.encrypt(secret.encode(), _place(person_id))
        if not await account_store.put_totp(connection, person_id, stored):
            return None
        return secret, pyotp.TOTP(secret).provisioning_uri(name=email, issuer_name=ISSUER)

    async def confirm(self, connection: AsyncConnection, person_id: str, code: str) -> list[str] | None:
        """Recovery codes, shown once; None where the code is wrong or nothing waits for confirmation."""
        found = await account_store.lock_totp(connection, person_id)
        if found is None or found.confirmed_at is not None:
            return None
        step = self._step(person_id, found, code)
        if step is None:
            return None
        await account_store.used_step(connection, person_id, step, confirm=True)
        return await self.renew_codes(connection, person_id)

    async def renew_codes(self, connection: AsyncConnection, person_id: str) -> list[str]:
        """Fresh recovery codes instead of the old ones."""
        codes = [_new_code() for _ in range(CODES)]
        await account_store.put_recovery_codes(connection, person_id, [_digest(code) for code in codes])
        return codes

    async def accepts(self, connection: AsyncConnection, person_id: str, code: str) -> str | None:
        """`totp` or `recovery_code` for a right one, which is used up by it; None for a wrong one."""
        found = await account_store.lock_totp(connection, person_id)
        if found is None or found.confirmed_at is None:
            return None
        step = self._step(person_id, found, code)
        if step is not None:
            await account_store.used_step(connection, person_id, step)
            return "totp"
        used = await account_store.use_recovery_code(connection, person_id, _digest(code))
        return "recovery_code" if used else None

    def _step(self, person_id: str, stored: account_store.Totp, code: str) -> int | None:
        """The time step of a right code that is later than all that were used."""
        digits = code.strip().replace(" ", "")
        if _CODE.fullmatch(digits) is None:
            return None
        totp = pyotp.TOTP(self._cipher.decrypt(stored.secret, _place(person_id)).decode())
        now = int(time.time()) // STEP
        for step in (now, now - 1, now + 1):
            if step > stored.last_step and hmac.compare_digest(totp.at(step * STEP), digits):
                return step
        return None


def _place(person_id: str) -> Place:
    return Place(NOBODY, person_id, "person_totp", "secret", person_id)


def _new_code() -> str:
    """`abcd-efgh-jkmn-pqrs`."""
    text = "".join(secrets.choice(_ALPHABET) for _ in range(16))
    return "-".join(text[at : at + 4] for at in range(0, 16, 4))


def _digest(code: str) -> bytes:
    """Of the letters alone: people leave out hyphens, and phones write capitals."""
    return hashlib.sha256(re.sub(r"[^a-z0-9]", "", code.lower()).encode()).digest()
