"""What accounts read, and how they show themselves."""

from typing import Annotated, Final, Literal

import msgspec
from msgspec import Meta
from typing_extensions import TypedDict

from core.clock import rfc3339
from services.users.account_store import Session
from services.users.one_time import Text
from services.users.passwords import MAX_CHARACTERS, MIN_CHARACTERS

EMAIL: Final = r"^[^\s@,;<>\"()\[\]\\\x00-\x1f\x7f]{1,64}@[^\s@,;<>\"()\[\]\\\x00-\x1f\x7f]+\.[^\s@,;<>\"()\[\]\\\x00-\x1f\x7f.]{2,}(?!\n)$"
Email = Annotated[str, Meta(min_length=6, max_length=254, pattern=EMAIL)]
Password = Annotated[str, Meta(min_length=1, max_length=MAX_CHARACTERS)]
NewPassword = Annotated[
    str,
    Meta(
        min_length=MIN_CHARACTERS,
        max_length=MAX_CHARACTERS,
        description=f"At least {MIN_CHARACTERS} characters, of any kind.",
    ),
]
Name = Annotated[str, Meta(max_length=200, pattern=r"^[^\x00-\x1f\x7f]*(?!\n)$")]
Code = Annotated[
    str, Meta(min_length=6, max_length=40, description="Six digits of the app, or a recovery code.")
]


class Body(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """Bodies hold secrets: none shows itself."""

    def __repr__(self) -> str:
        return f"{type(self).__name__}()"


class Register(Body, frozen=True, kw_only=True):
    email: Email
    password: NewPassword
    name: Name = ""
    organization: Annotated[
        str, Meta(max_length=200, description="Name of the organisation that is made with the account.")
    ] = ""


class Verify(Body, frozen=True, kw_only=True):
    token: Text
    password: Annotated[
        str, Meta(min_length=1, max_length=MAX_CHARACTERS, description="The one chosen at registration.")
    ]


class Forgot(Body, frozen=True, kw_only=True):
    email: Email


class Reset(Body, frozen=True, kw_only=True):
    token: Text
    password: NewPassword


class ChangePassword(Body, frozen=True, kw_only=True):
    current_password: Password
    new_password: NewPassword


class Login(Body, frozen=True, kw_only=True):
    email: Annotated[str, Meta(min_length=3, max_length=254)]
    password: Password
    organization: (
        Annotated[str, Meta(max_length=100, description="Slug or id; left out, your first organisation.")]
        | None
    ) = None
    code: (
        Annotated[str, Meta(max_length=40, description="Second factor, where the account has one.")] | None
    ) = None
    device_token: (
        Annotated[
            str,
            Meta(
                max_length=100,
                description="What an earlier login gave this device: attempts of others cannot lock it out.",
            ),
        ]
        | None
    ) = None


class Challenge(Body, frozen=True, kw_only=True):
    challenge: Annotated[str, Meta(max_length=2000)]
    code: Code
    device_token: Annotated[str, Meta(max_length=100)] | None = None


class Refresh(Body, frozen=True, kw_only=True):
    refresh_token: Annotated[str, Meta(max_length=100)]


class Enrol(Body, frozen=True, kw_only=True):
    password: Password


class Confirm(Body, frozen=True, kw_only=True):
    code: Code


class Disable(Body, frozen=True, kw_only=True):
    password: Password
    code: Code


class Profile(Body, frozen=True, kw_only=True):
    name: Name


class SessionCheck(Body, frozen=True, kw_only=True):
    session: Annotated[str, Meta(max_length=100)]
    generation: Annotated[int, Meta(ge=0, le=2**31 - 1)]


class Token(TypedDict):
    access_token: str
    token_type: Literal["Bearer"]
    expires_in: int
    refresh_token: str
    refresh_expires_in: int
    session: str
    device_token: str | None


class MfaRequired(TypedDict):
    """The password was right; send the second factor to `/api/v1/auth/challenge`."""

    object: Literal["mfa_challenge"]
    challenge: str
    expires_in: int
    methods: list[str]


class Accepted(TypedDict):
    """The same whether the address is known or not; a mail says the rest."""

    object: Literal["accepted"]
    detail: str


class Verified(TypedDict):
    id: str
    object: Literal["user"]
    organization: str


class WasReset(TypedDict):
    object: Literal["password_reset"]
    device_token: str


class Enrolment(TypedDict):
    """Shown once. `uri` is what authenticator apps read from a QR code."""

    object: Literal["totp_enrolment"]
    secret: str
    uri: str


class RecoveryCodes(TypedDict):
    """Shown once; each works once."""

    object: Literal["recovery_codes"]
    codes: list[str]


class MfaState(TypedDict):
    object: Literal["mfa"]
    totp: bool
    recovery_codes_left: int


class SessionShown(TypedDict):
    id: str
    object: Literal["session"]
    organization: str
    current: bool
    second_factor: bool
    user_agent: str
    created_at: str
    used_at: str
    expires_at: str


class Sessions(TypedDict):
    object: Literal["list"]
    data: list[SessionShown]
    first_id: str | None
    last_id: str | None
    has_more: bool


def session(found: Session, *, current: str) -> SessionShown:
    return SessionShown(
        id=found.id,
        object="session",
        organization=found.tenant_id,
        current=found.id == current,
        second_factor=found.second_factor,
        user_agent=found.user_agent,
        created_at=rfc3339(found.created_at),
        used_at=rfc3339(found.used_at),
        expires_at=rfc3339(found.expires_at),
    )
