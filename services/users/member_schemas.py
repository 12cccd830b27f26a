"""What routes of members and invitations read, and how they show what there is."""

from typing import Annotated, Literal

from msgspec import Meta
from typing_extensions import TypedDict

from core.clock import now, rfc3339
from services.users.account_schemas import Body, Email, Name, Password
from services.users.invitation_store import Invitation
from services.users.one_time import Text
from services.users.roles import ROLES, Role
from services.users.store import Member


class NewRole(Body, frozen=True, kw_only=True):
    role: Role


class NewInvitation(Body, frozen=True, kw_only=True):
    email: Email
    role: Role = Role.VIEWER


class Accept(Body, frozen=True, kw_only=True):
    token: Text
    password: Annotated[
        Password, Meta(description="The account's; for a new account the one to be, at least 12 characters.")
    ]
    name: Name = ""


class RoleShown(TypedDict):
    id: str
    object: Literal["role"]
    scopes: list[str]


class Roles(TypedDict):
    object: Literal["list"]
    data: list[RoleShown]


class MemberShown(TypedDict):
    id: str
    object: Literal["member"]
    email: str
    name: str
    role: str
    scopes: list[str]
    created_at: str


class InvitationShown(TypedDict):
    id: str
    object: Literal["invitation"]
    email: str
    role: str
    status: Literal["open", "accepted", "revoked", "expired"]
    invited_by: str
    created_at: str
    expires_at: str


class Accepted(TypedDict):
    id: str
    object: Literal["user"]
    organization: str
    role: str


class _List(TypedDict):
    object: Literal["list"]
    first_id: str | None
    last_id: str | None
    has_more: bool


class Members(_List):
    data: list[MemberShown]


class Invitations(_List):
    data: list[InvitationShown]


def roles() -> Roles:
    """All roles and what they allow."""
    shown = [RoleShown(id=role, object="role", scopes=sorted(scopes)) for role, scopes in ROLES.items()]
    return Roles(object="list", data=shown)


def member(found: Member) -> MemberShown:
    return MemberShown(
        id=found.person_id,
        object="member",
        email=found.email,
        name=found.name,
        role=found.role,
        scopes=sorted(ROLES[Role(found.role)]),
        created_at=rfc3339(found.created_at),
    )


def invitation(found: Invitation) -> InvitationShown:
    return InvitationShown(
        id=found.id,
        object="invitation",
        email=found.email,
        role=found.role,
        status=found.state(now()),
        invited_by=found.invited_by,
        created_at=rfc3339(found.created_at),
        expires_at=rfc3339(found.expires_at),
    )
