"""Roles and what they allow: the only place where the two meet.

A scope is `<resource>:<action>`. People get scopes through the role of their membership, API keys
carry their own (never more than their creator had).
"""

from collections.abc import Iterable, Mapping
from enum import StrEnum
from types import MappingProxyType


class Role(StrEnum):
    """What a person is in one organisation."""

    OWNER = "owner"
    ADMIN = "admin"
    DEVELOPER = "developer"
    VIEWER = "viewer"


SCOPES: Mapping[str, str] = MappingProxyType(
    {
        "usage:write": "report usage events",
        "usage:read": "read usage and meters",
        "usage:import": "register imports of old usage",
        "billing:read": "read prices, invoices and invariants",
        "billing:write": "close service periods, post adjustments and fix prices",
        "keys:read": "list API keys",
        "keys:write": "create, rotate and revoke API keys",
        "agents:read": "read agents, conversations and runs",
        "agents:write": "create and change agents and provider keys",
        "agents:run": "start and cancel runs, and call models",
        "memory:read": "search and read documents",
        "memory:write": "upload, change and delete documents",
        "dead_letters:write": "list, redrive and discard dead letters",
        "org:read": "read the organisation",
        "org:admin": "change the organisation",
    }
)
"""Every scope of the platform and what it allows."""

PLATFORM = frozenset({"billing:write"})
"""Held by the owner of the platform, and by keys that the owner makes: no role of an organisation bills itself.
Who could cut his own service periods would get the free units of each."""

_VIEW = frozenset({"usage:read", "billing:read", "org:read", "agents:read", "memory:read"})
_DEVELOP = _VIEW | {
    "usage:write",
    "usage:import",
    "keys:read",
    "keys:write",
    "agents:write",
    "agents:run",
    "memory:write",
}

ROLES: Mapping[Role, frozenset[str]] = MappingProxyType(
    {
        Role.OWNER: frozenset(SCOPES) - PLATFORM,
        Role.ADMIN: frozenset(SCOPES) - PLATFORM,
        Role.DEVELOPER: _DEVELOP,
        Role.VIEWER: _VIEW,
    }
)


def scopes_of(role: str, *, platform_owner: bool = False) -> tuple[str, ...]:
    """Scopes of a role, sorted. The platform's owner holds all of them in every organisation.

    Raises:
        ValueError: for a role that is not in `Role`.
    """
    return tuple(sorted(SCOPES if platform_owner else ROLES[Role(role)]))


def invitable(role: Role) -> list[Role]:
    """Roles that somebody with `role` may invite others to: only owners make owners."""
    if "org:admin" not in ROLES[role]:
        return []
    return [one for one in Role if one != Role.OWNER or role == Role.OWNER]


def unknown_scopes(wanted: Iterable[str]) -> list[str]:
    """Those of `wanted` that no part of the platform knows, sorted."""
    return sorted(set(wanted) - SCOPES.keys())
