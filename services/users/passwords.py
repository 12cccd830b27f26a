"""Passwords: bcrypt over a fixed-length pre-hash, computed off the event loop by few threads.

bcrypt reads 72 bytes; bcrypt 5 refuses more, older ones cut silently, and 64 Chinese characters are
192 bytes. So the password is hashed first: base64(HMAC-SHA-384("headrace password v1", UTF-8 bytes
as received)) is always 64 bytes without NUL, keeps every byte of the password relevant, and (unlike
plain SHA) matches no list of hashes that leaked elsewhere.

One bcrypt at cost 12 takes about 0.3 s of a core. A burst of logins must not take the service away
from key introspection: few threads, a short queue, and beyond that `BusyError`.
"""

import asyncio
import base64
import hashlib
import hmac
from concurrent.futures import ThreadPoolExecutor
from typing import Final

import bcrypt

COST: Final = 12
"""bcrypt's work factor: 2**12 rounds."""
MIN_CHARACTERS: Final = 12
MAX_CHARACTERS: Final = 1024

NOBODY: Final = "$2b$12$21ohV1aZnPsFvNe5W/rhY.PF0dzxVQFkgHX2bjWX3/YEriPWMZgIW"
"""Hash of a random value that was thrown away: what an unknown e-mail is compared with."""
_DOMAIN: Final = b"headrace password v1"


class BusyError(Exception):
    """More logins wait than this process can check in reasonable time."""


def prehash(password: str) -> bytes:
    """The 64 bytes that bcrypt sees."""
    digest = hmac.digest(_DOMAIN, password.encode(), hashlib.sha384)
    return base64.b64encode(digest)


class Passwords:
    """Hashes and checks passwords in `threads` threads; at most `queue` callers wait.

    Args:
        threads: bcrypt computations at a time.
        queue: callers that may wait for a thread before `BusyError`.
        cost: work factor of new hashes; existing hashes carry their own.
    """

    def __init__(self, threads: int = 2, queue: int = 16, cost: int = COST) -> None:
        self._pool = ThreadPoolExecutor(threads, thread_name_prefix="bcrypt")
        self._limit = threads + queue
        self._taken = 0
        self._cost = cost

    async def hash(self, password: str) -> str:
        """A fresh salted hash. Raises: BusyError."""
        salt = bcrypt.gensalt(self._cost)
        return (await self._run(prehash(password), salt)).decode()

    async def matches(self, password: str, stored: str | None) -> bool:
        """Whether `password` is the one behind `stored`; None (nobody) costs the same and is False.

        Raises:
            BusyError: too many callers wait already.
        """
        expected = (stored or NOBODY).encode()
        computed = await self._run(prehash(password), expected)
        return hmac.compare_digest(computed, expected) and stored is not None

    def close(self) -> None:
        """Let running computations end, take no more."""
        self._pool.shutdown(wait=True, cancel_futures=True)

    async def _run(self, secret: bytes, salt: bytes) -> bytes:
        if self._taken >= self._limit:
            raise BusyError
        self._taken += 1
        try:
            return await asyncio.get_running_loop().run_in_executor(self._pool, bcrypt.hashpw, secret, salt)
        finally:
            self._taken -= 1
