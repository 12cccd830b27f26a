"""Guessing is slowed down so that nobody can be locked out of their own account by somebody else.

Attempts fill leaking buckets in PostgreSQL, one attempt each; a full one answers 429 until it has
leaked. Which bucket counts depends on what the caller can prove:

- A *known device* sends the device token that an earlier login of this account gave it. It has a
  bucket of its own (account + device), which nobody else can fill.
- Everybody else shares a bucket with those who try the same account from the same network
  (account + address), so wrong guesses from elsewhere do not fill it.
- *Strangers* (no device token, and no login of this account ever succeeded from their network) fill a
  third bucket as well, one for the whole account: it is what stops guesses from ten thousand addresses.
  A known device and a known network pass it by, so a botnet at a victim's account closes the account to
  strangers only. A victim in front of a new machine in a new network asks for a reset by mail, whose
  answer brings a device token.

An attempt is counted before the password is looked at (else a hundred parallel guesses would all find
room) and given back when it was right. Refused attempts are not counted: going on does not prolong the
wait. Names of buckets are keyed hashes, the same for addresses that nobody has: a 429 says nothing
about whether an account exists.
"""

import hashlib
import hmac
import math
from dataclasses import dataclass
from ipaddress import ip_address, ip_network
from typing import Final, Literal

from sqlalchemy import text
from sqlalchemy.ext.asyncio import AsyncConnection

from services.common.errors import Problem

Kind = Literal["password", "code", "mail", "register", "invite"]


@dataclass(frozen=True, slots=True)
class Bucket:
    """Room for `capacity` attempts; one leaks every `seconds`."""

    capacity: int
    seconds: float


SHARED: Final = Bucket(10, 60)
"""One account from one network or device."""
STRANGERS: Final = Bucket(60, 60)
"""One account from everywhere else."""
MAILS: Final = Bucket(5, 600)
"""Mails to one address."""
MADE: Final = Bucket(30, 60)
"""Registrations and requests for mail from one network."""
INVITING: Final = Bucket(50, 60)
"""Invitations of one organisation."""
INVITED: Final = Bucket(3, 3600)
"""Invitations to one address, of all organisations: whoever makes organisations makes no flood of them."""


@dataclass(frozen=True, slots=True)
class Caller:
    """What an attempt comes with."""

    address: str = ""
    """Client address as the gateway saw it."""
    user_agent: str = ""

    @property
    def network(self) -> str:
        """The IPv4 address, or the /64 that an IPv6 customer has to itself."""
        try:
            parsed = ip_address(self.address)
        except ValueError:
            return self.address
        return str(ip_network((parsed, 64), strict=False)) if parsed.version == 6 else self.address


class Lockout:
    """Buckets of attempts. Every method works on the caller's transaction.

    Args:
        key: names of buckets are HMAC-SHA-256 under it.
    """

    def __init__(self, key: bytes) -> None:
        self._key = hmac.digest(key, b"headrace lockout v1", "sha256")

    def name(self, *parts: str) -> bytes:
        """Keyed hash of parts; no two lists of parts give one."""
        text_ = "".join(f"{len(part)}:{part}" for part in parts)
        return hmac.digest(self._key, text_.encode(), hashlib.sha256)

    def place(self, person_id: str, caller: Caller) -> bytes:
        """What is remembered of the network of a login that succeeded."""
        return self.name("place", person_id, caller.network)

    async def admit(
        self,
        connection: AsyncConnection,
        kind: Kind,
        account: str,
        caller: Caller,
        *,
        device: str | None,
        known: bool,
    ) -> tuple[bytes, ...]:
        """Count one attempt; returns the buckets it stands in, for `forgive`.

        Args:
            account: e-mail (lower case) or person id; also of nobody.
            device: id of the device whose token the caller sent.
            known: True where the account has logged in from this network before.

        Raises:
            Problem: 429 `too_many_attempts`; commit nothing then.
        """
        if device is not None:
            names = {self.name(kind, "device", device): SHARED}
        else:
            names = {self.name(kind, "network", account, caller.network): SHARED}
            if not known:
                names[self.name(kind, "strangers", account)] = STRANGERS
        for name, bucket in names.items():
            if (wait := await _take(connection, name, bucket)) is not None:
                raise too_many(wait)
        return tuple(names)

    async def forgive(self, connection: AsyncConnection, names: tuple[bytes, ...]) -> None:
        """The attempt was right: empty its own bucket, and take it out of the strangers'."""
        await connection.execute(text("delete from attempt_bucket where name = :name"), {"name": names[0]})
        await self.give_back(connection, names[1:])

    async def give_back(self, connection: AsyncConnection, names: tuple[bytes, ...]) -> None:
        """The attempt was never looked at."""
        for name in names:
            await connection.execute(
                text("update attempt_bucket set level = greatest(0, level - 1) where name = :name"),
                {"name": name},
            )

    async def wait(self, connection: AsyncConnection, kind: Kind, bucket: Bucket, *parts: str) -> int | None:
        """Count one use of a bucket of its own; the seconds to wait (and nothing counted) where it is full."""
        return await _take(connection, self.name(kind, *parts), bucket)


def too_many(seconds: int) -> Problem:
    return Problem(
        429,
        "too_many_attempts",
        "Too many attempts",
        f"Too many attempts failed; go on in {seconds} s, from a device that has logged in before, or reset the password.",
        headers={"retry-after": str(seconds)},
    )


_TAKE: Final = text(
    """
    insert into attempt_bucket as b (name, level) values (:name, 1)
    on conflict (name) do update set
        level = greatest(0, b.level - extract(epoch from clock_timestamp() - b.at) / :seconds) + 1,
        at = clock_timestamp()
    where greatest(0, b.level - extract(epoch from clock_timestamp() - b.at) / :seconds) + 1 <= :capacity
    returning 1
    """
)
_LEVEL: Final = text(
    "select level - extract(epoch from clock_timestamp() - at) / :seconds from attempt_bucket where name = :name"
)


async def _take(connection: AsyncConnection, name: bytes, bucket: Bucket) -> int | None:
    """None where there was room, else the seconds until there is."""
    values = {"name": name, "seconds": bucket.seconds, "capacity": float(bucket.capacity)}
    if (await connection.execute(_TAKE, values)).first() is not None:
        return None
    level = float(await connection.scalar(_LEVEL, {"name": name, "seconds": bucket.seconds}) or 0)
    return max(1, math.ceil((level + 1 - bucket.capacity) * bucket.seconds))
