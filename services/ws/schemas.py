"""What clients send and what the agents service answers."""

from typing import Any

import msgspec


class Request(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """`{"t": "req", "id": …, "method": …, "params": {…}}`, or `{"t": "ping"}` and `{"t": "pong"}`."""

    t: str
    id: str | int | None = None
    method: str = ""
    params: dict[str, Any] = msgspec.field(default_factory=dict)


class AfterBody(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """The place of the last event a client has: `epoch` and `seq` of its frame, or its `cursor`."""

    epoch: int = 0
    seq: int = 0
    cursor: str = ""


class Subscribe(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    ch: str
    after: AfterBody | None = None


class Unsubscribe(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    ch: str


class Send(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    conversation_id: str
    client_msg_id: str
    text: str
    agent: str | None = None


class Cancel(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    run_id: str


class Resolve(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """An answer to `approval.requested`: its `call` and `round`."""

    run_id: str
    call: str
    decision: str
    round: int = 1
    note: str = ""


class Refresh(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """One of both: a new ticket, or a new access token or key."""

    ticket: str = ""
    token: str = ""


class Place(msgspec.Struct, frozen=True):
    partition: int
    offset: int


class Owner(msgspec.Struct, frozen=True):
    """Answer of agents' `/internal/runs/{id}` and `/internal/conversations/{id}`."""

    tenant: str
    user: str
    conversation: str = ""
    epoch: int = 0
    last_seq: int = 0
    status: str = ""
    first: Place | None = None
    last: int | None = None


class Ticket(msgspec.Struct, frozen=True):
    """Answer of `POST /api/v1/ws/tickets`."""

    ticket: str
    """Good for one connection."""
    expires_in: int
    url: str
    """Where to connect: add `?ticket=`."""


def encode(document: msgspec.Struct) -> bytes:
    return msgspec.json.encode(document)
