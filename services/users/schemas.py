"""What the users service reads, and how it shows what it holds."""

from datetime import datetime
from typing import Annotated, Final, Literal

import msgspec
from msgspec import Meta
from typing_extensions import TypedDict

from core.clock import now, rfc3339
from services.users.roles import SCOPES
from services.users.store import ApiKey, Membership, Organisation

SLUG: Final = "^[a-z0-9](?:[a-z0-9-]{0,61}[a-z0-9])?$"
"""A DNS label, for pydantic and OpenAPI."""
_WHOLE_SLUG: Final = SLUG + r"(?!\n)"
"""The same for msgspec: in Python's `re` the `$` also matches before a final newline."""
MAX_OVERLAP: Final = 7 * 24 * 3600

Name = Annotated[str, Meta(min_length=1, max_length=200)]


class NewOrganization(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    slug: Annotated[
        str, Meta(pattern=_WHOLE_SLUG, description="How people name it: a-z, 0-9 and -, at most 63.")
    ]
    name: Name
    plan: Annotated[str, Meta(min_length=1, max_length=50)] = "free"


class NewApiKey(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    name: Name
    scopes: Annotated[
        list[str],
        Meta(
            min_length=1,
            max_length=50,
            description=f"Of {', '.join(SCOPES)}; not more than you hold yourself.",
        ),
    ]
    expires_at: (
        Annotated[datetime, Meta(tz=True, description="RFC 3339 with a zone; left out, it never expires.")]
        | None
    ) = None


class Rotation(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    overlap_seconds: Annotated[
        int, Meta(ge=0, le=MAX_OVERLAP, description="How long the old key stays valid; 0 ends it at once.")
    ] = 0


class Introspection(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    key: Annotated[str, Meta(max_length=500)]

    def __repr__(self) -> str:
        return "Introspection()"


class Organization(TypedDict):
    id: str
    object: Literal["organization"]
    slug: str
    name: str
    plan: str
    requests_per_minute: int
    usage_retention_days: int
    audit_retention_days: int
    created_at: str


class MembershipOf(TypedDict):
    id: str
    slug: str
    role: str
    plan: str


class Me(TypedDict):
    id: str
    object: Literal["user", "api_key"]
    organization: str
    scopes: list[str]
    platform_owner: bool
    email: str | None
    name: str
    memberships: list[MembershipOf]


class ApiKeyShown(TypedDict):
    """A key without its secret; `prefix` is the part by which people recognise it."""

    id: str
    object: Literal["api_key"]
    name: str
    prefix: str
    scopes: list[str]
    status: Literal["active", "expired", "revoked"]
    created_by: str
    created_at: str
    expires_at: str | None
    revoked_at: str | None
    rotated_to: str | None


class ApiKeyCreated(ApiKeyShown):
    """The only answer that ever shows the secret."""

    key: str


class _List(TypedDict):
    object: Literal["list"]
    first_id: str | None
    last_id: str | None
    has_more: bool


class Organizations(_List):
    data: list[Organization]


class ApiKeys(_List):
    data: list[ApiKeyShown]


def organization(found: Organisation) -> Organization:
    return Organization(
        id=found.id,
        object="organization",
        slug=found.slug,
        name=found.name,
        plan=found.plan,
        requests_per_minute=found.requests_per_minute,
        usage_retention_days=found.usage_retention_days,
        audit_retention_days=found.audit_retention_days,
        created_at=rfc3339(found.created_at),
    )


def membership(found: Membership) -> MembershipOf:
    return MembershipOf(id=found.tenant_id, slug=found.slug, role=found.role, plan=found.plan)


def api_key(found: ApiKey) -> ApiKeyShown:
    return ApiKeyShown(
        id=found.id,
        object="api_key",
        name=found.name,
        prefix=f"sk_live_{found.public_id}",
        scopes=list(found.scopes),
        status=found.state(now()),
        created_by=found.created_by,
        created_at=rfc3339(found.created_at),
        expires_at=None if found.expires_at is None else rfc3339(found.expires_at),
        revoked_at=None if found.revoked_at is None else rfc3339(found.revoked_at),
        rotated_to=found.rotated_to,
    )
