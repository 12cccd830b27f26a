"""What the routes of the users service work with, and how they read ids."""

from dataclasses import dataclass
from typing import Annotated

from fastapi import Depends, Path, Request

from core.ids import is_id
from services.common.errors import not_found
from services.users.accounts import Accounts
from services.users.api_keys import ApiKeys
from services.users.handlers import Identities
from services.users.invitations import Invitations
from services.users.logins import Logins
from services.users.members import Members
from services.users.organizations import Organisations
from services.users.sessions import Sessions
from services.users.tokens import Tokens


@dataclass(frozen=True, slots=True)
class Users:
    """The app puts it at `app.state.users`."""

    identities: Identities
    organizations: Organisations
    api_keys: ApiKeys
    tokens: Tokens
    logins: Logins
    sessions: Sessions
    accounts: Accounts
    members: Members
    invitations: Invitations


async def _users(request: Request) -> Users:
    found: Users = request.app.state.users
    return found


def known_shape(what: str, text: str) -> str:
    """Ids have one shape; any other text names nothing, whatever a database would make of it."""
    if not is_id(text):
        raise not_found(what)
    return text


async def _organization_id(organization_id: Annotated[str, Path(alias="id", description="`org_…`")]) -> str:
    return known_shape("organisation", organization_id)


UsersOf = Annotated[Users, Depends(_users)]
OrganizationId = Annotated[str, Depends(_organization_id)]
