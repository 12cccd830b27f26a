"""Records for the drill of the usage path: what real streams have, of meters of each kind."""

import random
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from typing import Final

from assets.usage.schema import TOPIC
from core.contracts.usage import Reference, UsageData, UsageEvent, VoidEvent
from core.eventlog.api import NewRecord

ORGANISATIONS: Final = tuple(f"org_00000000-0000-7000-8000-00000000000{number}" for number in range(3))
AGAIN, BROKEN, CONFLICT, VOID, AGED = 0.1, 0.13, 0.16, 0.18, 0.98
"""Up to which share of the stream an event is sent again, cut off, contradicted, taken out; from which it is too old."""

_MAKES: Final[tuple[Callable[[random.Random], UsageData], ...]] = (
    lambda pick: UsageData("users.active", "1", {"product": "p", "user": f"u{pick.randrange(30)}"}),
    lambda pick: UsageData("storage.peak", str(pick.randrange(1, 10**6)), {"bucket": "b"}),
    lambda pick: UsageData("seats", str(pick.randrange(1, 500)), {"product": "p"}),
)
"""Of meters that are not added up: a unique count, a maximum, a latest value."""


def stream(seed: int, count: int, *, first: int = 0) -> list[NewRecord]:
    """Events of three tenants over two days with repetitions, conflicts, voids, old ones and rubbish.

    Args:
        first: number of the first event; copies of an event have one key, so streams that are sent together
            must not share numbers.
    """
    pick = random.Random(seed)  # noqa: S311 - repeatable
    now = datetime.now(UTC)
    records: list[NewRecord] = []
    for number in range(first, first + count):
        roll = pick.random()
        if roll < AGAIN and records:
            records.append(pick.choice(records))
            continue
        age = timedelta(days=500) if roll > AGED else timedelta(minutes=pick.randrange(2 * 24 * 60))
        event = UsageEvent(
            id=f"e{number}", source="s", time=now - age, tenant=ORGANISATIONS[pick.randrange(3)],
            type="headrace.usage.v1", specversion="1.0", subject=f"cus_{pick.randrange(40)}", data=_data(pick),
        )  # fmt: skip
        value = event.encode()
        records.append(NewRecord(TOPIC, event.key, value[:-2] if AGAIN <= roll < BROKEN else value))
        if BROKEN <= roll < CONFLICT:
            conflict = value.replace(b'"quantity":"', b'"quantity":"7')
            records.append(NewRecord(TOPIC, event.key, conflict))
        elif CONFLICT <= roll < VOID:
            records.append(NewRecord(TOPIC, event.key, _void(event, now).encode()))
    return records


def _data(pick: random.Random) -> UsageData:
    kind = pick.randrange(10)
    if kind < len(_MAKES):
        return _MAKES[kind](pick)
    return UsageData("llm.tokens.input", f"{pick.randrange(10**6)}.{pick.randrange(1, 10)}", {"model": "m"})


def _void(event: UsageEvent, now: datetime) -> VoidEvent:
    """Behind the event under its key, so that it never lands in an earlier slice."""
    return VoidEvent(
        id=f"v{event.id}", source=event.source, time=now, tenant=event.tenant, type="headrace.usage.void.v1",
        specversion="1.0", subject=event.subject, data=Reference(event.source, event.id),
    )  # fmt: skip
