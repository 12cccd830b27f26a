"""Identifiers: random ones carry their type as a prefix, derived ones come from the work itself.

Random ids are UUIDv7 (RFC 9562), so they sort by creation. Identity of a usage event is the
SHA-256 over the length-prefixed parts (law 3): without the lengths ("ab", "c") and ("a", "bc")
would be one event.
"""

import hashlib
import re
import uuid
from collections.abc import Iterable
from typing import Final

import uuid_utils

NAMESPACE = uuid.UUID("6f0d2d0e-5c57-5c0e-9d54-2f1f6f1c7a10")
"""Namespace of every derived (UUIDv5) identifier of the platform."""
_ID: Final = re.compile(r"[a-z]{2,8}_[0-9a-f-]{36}", re.ASCII)


def new_id(prefix: str) -> str:
    """A fresh identifier such as `org_01890a5d-ac96-774b-bcce-b302099a8057`."""
    return f"{prefix}_{uuid_utils.uuid7()}"


def is_id(text: str) -> bool:
    """True for what `new_id` could have made: any other text names nothing, whatever a store would make of it."""
    return _ID.fullmatch(text) is not None


def derived_id(*parts: str) -> str:
    """The same parts give the same UUID on every attempt and on every machine."""
    return str(uuid.uuid5(NAMESPACE, "".join(f"{len(part)}:{part}" for part in parts)))


def length_prefixed(parts: Iterable[str]) -> bytes:
    """Each part behind its length in characters, `5:hello`, as UTF-8: no two lists give one text."""
    return "".join([f"{len(part)}:{part}" for part in parts]).encode()


def identity(tenant: str, source: str, event_id: str) -> bytes:
    """16 bytes that name a usage event. Time is not part of it."""
    # `length_prefixed` written out: this runs once for every record that lands.
    text = f"{len(tenant)}:{tenant}{len(source)}:{source}{len(event_id)}:{event_id}"
    return hashlib.sha256(text.encode()).digest()[:16]
