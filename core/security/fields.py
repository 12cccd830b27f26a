"""Encryption of single fields at rest, bound to the place where they stand.

AES-256-GCM with a random 96-bit nonce. The associated data names tenant, subject, table, column, row
and key version, so a ciphertext copied to another row, column or tenant does not open there.

    format (1) | key version (4, big endian) | nonce (12) | ciphertext and tag (16)

A key encrypts at most 2**32 fields (NIST SP 800-38D, random nonces); add a version well before.
"""

import os
from collections.abc import Mapping
from dataclasses import astuple, dataclass
from typing import Final, Self

from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers.aead import AESGCM

from core.ids import length_prefixed
from core.settings import SecuritySettings

FORMAT: Final = 1
_NONCE: Final = 12
_HEADER: Final = 1 + 4
_SHORTEST: Final = _HEADER + _NONCE + 16


class FieldError(Exception):
    """A ciphertext does not open here: changed, moved from another place, or its key is gone."""


class UnknownKeyError(FieldError):
    """The ciphertext's key version is not among the keys given."""


@dataclass(frozen=True, slots=True)
class Place:
    """Where a field stands. Every part is text that never changes for that field."""

    tenant: str
    subject: str
    """Pseudonymous id of the person it is about; empty where it is about none."""
    table: str
    column: str
    row: str
    """The row's primary key."""


class FieldCipher:
    """Encrypts with the current key version and opens all that it was given.

    Args:
        keys: version (1 to 2**32 - 1) to 32 bytes.
        current: the version that encrypts.

    Raises:
        ValueError: a key has not 32 bytes, a version is out of range, or `current` is not among them.
    """

    def __init__(self, keys: Mapping[int, bytes], current: int) -> None:
        if current not in keys:
            raise ValueError(f"the current key version {current} is not among the keys")
        for version, key in keys.items():
            if not 0 < version < 2**32 or len(key) != 32:
                raise ValueError(f"field key {version}: give a version from 1 and 32 bytes")
        self._keys = {version: AESGCM(key) for version, key in keys.items()}
        self.current = current

    @classmethod
    def from_settings(cls, settings: SecuritySettings) -> Self:
        """From HEADRACE_FIELD_KEY, `<version>:<32 bytes hex>[,…]`; the first entry encrypts.

        Raises:
            ValueError: where the setting has another form. The message does not quote it.
        """
        keys: dict[int, bytes] = {}
        for entry in settings.field_key.get_secret_value().split(","):
            version, _, key = entry.strip().partition(":")
            try:
                number, raw = int(version), bytes.fromhex(key)
            except ValueError:
                raise ValueError("HEADRACE_FIELD_KEY must be `<version>:<32 bytes hex>[,…]`") from None
            if number in keys:
                raise ValueError(f"HEADRACE_FIELD_KEY names version {number} twice")
            keys[number] = raw
        return cls(keys, next(iter(keys)))

    def encrypt(self, plain: bytes, place: Place) -> bytes:
        """Encrypt for this place, with a fresh nonce: the same text gives another ciphertext each time."""
        header = bytes([FORMAT]) + self.current.to_bytes(4)
        nonce = os.urandom(_NONCE)
        return header + nonce + self._keys[self.current].encrypt(nonce, plain, _bound(place, self.current))

    def decrypt(self, stored: bytes, place: Place) -> bytes:
        """Open a ciphertext where it stands.

        Raises:
            UnknownKeyError: its key version is not among the keys.
            FieldError: it was changed, or stands in another place than it was made for.
        """
        version = self.version(stored)
        cipher = self._keys.get(version)
        if cipher is None:
            raise UnknownKeyError(f"{place.table}.{place.column}: key version {version} is not available")
        nonce = stored[_HEADER : _HEADER + _NONCE]
        try:
            return cipher.decrypt(nonce, stored[_HEADER + _NONCE :], _bound(place, version))
        except InvalidTag:
            raise FieldError(
                f"{place.table}.{place.column}: the ciphertext was changed or belongs to another row"
            ) from None

    def renew(self, stored: bytes, place: Place) -> bytes | None:
        """The same content under the current key; None where it already is. Raises as `decrypt`."""
        if self.version(stored) == self.current:
            return None
        return self.encrypt(self.decrypt(stored, place), place)

    @staticmethod
    def version(stored: bytes) -> int:
        """Key version of a ciphertext. Raises: FieldError for what is none."""
        if len(stored) < _SHORTEST or stored[0] != FORMAT:
            raise FieldError("this is not a ciphertext of core.security.fields")
        return int.from_bytes(stored[1:_HEADER])


def _bound(place: Place, version: int) -> bytes:
    return length_prefixed(("headrace.field", str(version), *astuple(place)))
