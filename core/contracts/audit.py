"""Contract v1 of `audit.logs`: who did what to what, with which outcome.

    {"schema": "headrace.audit.v1", "id": "aud_…", "time": "2026-02-18T12:00:00.000000Z",
     "tenant": "org_…", "actor": "usr_…", "action": "api_key.create", "target": "key_…",
     "outcome": "success", "trace_id": "…", "detail": {"scopes": "usage:write"}}

What lands is kept for years and never rewritten (law 10): references are pseudonymous ids, detail
holds ids and codes, and what must say more is `sealed` under its subject's key.
"""

import re
from datetime import UTC, datetime
from typing import Annotated, Final, Literal

import msgspec

from core.contracts.usage import ContractError

SCHEMA: Final = "headrace.audit.v1"
NO_TENANT: Final = "-"
"""Tenant of what happens before one is known, such as a failed login."""

Outcome = Literal["success", "denied", "failure"]

Reference = Annotated[str, msgspec.Meta(pattern=r"^[a-z][A-Za-z0-9_.:\-]{0,159}\Z")]
"""One of our ids (its prefix says what it names) or `system`; never an e-mail address or a person's name."""
Code = Annotated[str, msgspec.Meta(pattern=r"^[A-Za-z0-9_.:/,*{}\- ]{0,256}\Z")]
"""Ids, codes, numbers, routes: an alphabet in which an e-mail address cannot be written."""
Name = Annotated[str, msgspec.Meta(pattern=r"^[a-z][a-z0-9_]{0,63}\Z")]
Action = Annotated[str, msgspec.Meta(pattern=r"^[a-z][a-z0-9_]*(\.[a-z][a-z0-9_]*)+\Z", max_length=64)]


class AuditEvent(msgspec.Struct, frozen=True, forbid_unknown_fields=True, gc=False, omit_defaults=True):
    id: Annotated[str, msgspec.Meta(pattern=r"^aud_[0-9a-f\-]{36}\Z")]
    time: Annotated[datetime, msgspec.Meta(tz=True)]
    tenant: Annotated[str, msgspec.Meta(pattern=r"^(-|[a-z]+_[0-9a-f\-]{36})\Z")]
    actor: Reference
    action: Action
    target: Reference
    outcome: Outcome
    schema: Literal["headrace.audit.v1"]
    trace_id: Annotated[str, msgspec.Meta(pattern=r"^([0-9a-f]{32})?\Z")] = ""
    detail: Annotated[dict[Name, Code], msgspec.Meta(max_length=16)] = {}
    sealed: Annotated[str, msgspec.Meta(pattern=r"^[A-Za-z0-9_\-]*\Z", max_length=16_384)] = ""
    """Ciphertext of `core.security.fields` in base64url; readable while the subject's key exists."""

    @property
    def key(self) -> bytes:
        """Key of the record in `audit.logs`."""
        return self.tenant.encode()

    def encode(self) -> bytes:
        return _ENCODER.encode(self)


_QUOTED = re.compile(r"Invalid enum value .*(?= - at `\$|\Z)", re.DOTALL)
_DECODER = msgspec.json.Decoder(AuditEvent)
_ENCODER = msgspec.json.Encoder()
_EARLIEST = datetime(2000, 1, 1, tzinfo=UTC)
_LATEST = datetime(2200, 1, 1, tzinfo=UTC)


def parse(value: bytes) -> AuditEvent:
    """Read one record of `audit.logs`.

    Raises:
        ContractError: `unreadable` (not JSON, not UTF-8), `schema` (wrong type, missing or unknown
            field), `time`.
    """
    try:
        event = _DECODER.decode(value)
    except msgspec.ValidationError as error:
        raise ContractError("schema", _without_content(str(error))) from None
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        raise ContractError("unreadable", "the record is not one JSON object in UTF-8") from None
    if not _EARLIEST <= event.time < _LATEST:
        raise ContractError("time", "`time` must lie between 2000 and 2200")
    return event


def check(event: AuditEvent) -> AuditEvent:
    """The event as its readers will see it. Raises: ContractError as `parse` does."""
    return parse(event.encode())


def _without_content(message: str) -> str:
    """msgspec names path and expectation, but quotes an unknown field's name and an unknown choice."""
    if "unknown field" in message:
        return "Object contains an unknown field"
    return _QUOTED.sub("Invalid enum value", message)
