"""What calls of `/v1` used: on disk before the answer ends, in the outbox a moment later (law 4)."""

import asyncio
import math
from collections.abc import Coroutine
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import msgspec

from core.clock import now
from core.contracts.usage import TYPE, UsageData, UsageEvent
from core.database import Database
from core.eventlog.api import NewRecord
from core.ids import derived_id
from core.log import Logger
from core.messaging import inbox
from core.messaging.outbox import enqueue
from services.agents.metering import SOURCE, TOPIC, Tokens
from services.agents.providers.model import Target
from services.common.errors import Problem
from services.common.principal import Principal
from services.common.spool import Courier, Spool, lines_of
from services.common.token_window import NOTHING, Counted, TokenWindow, window_name

CONSUMER: Final = "agents.spool"
SEND_SECONDS: Final = 0.25
"""Live quota promises to know within two."""
CLOSE_SECONDS: Final = 3.0
_LOG: Final = Logger("agents.openai.usage")


def reported(usage: Any) -> Tokens | None:
    """Tokens of a `usage` object of chat, embeddings or responses; None where there is none."""
    if not isinstance(usage, dict):
        return None
    details = usage.get("prompt_tokens_details") or usage.get("input_tokens_details") or {}
    said = usage.get("completion_tokens_details") or usage.get("output_tokens_details") or {}
    return Tokens(
        input=_count(usage, "prompt_tokens", "input_tokens"),
        output=_count(usage, "completion_tokens", "output_tokens"),
        cached=_count(details, "cached_tokens"),
        input_audio=_count(details, "audio_tokens"),
        output_audio=_count(said, "audio_tokens"),
    )


def guessed(request: bytes, pieces: int) -> Tokens:
    """Of a stream that ended before the provider reported: four bytes a token of what was sent, and one
    for each piece of what came. Without it whoever leaves before the last line would pay nothing."""
    return Tokens(input=math.ceil(len(request) / 4), output=pieces)


class _Call(msgspec.Struct, frozen=True):
    """A line of the spool."""

    tenant: str
    key: bytes
    records: list[str]
    """Usage events as they go to the topic."""


class UsageWriter:
    """Keeps what a call used on the local disk before its answer ends; a courier takes it to the outbox.

    Args:
        spool: of this process.
        system: role `system`; a segment holds calls of many organisations.
    """

    def __init__(self, spool: Spool, system: Database, window: TokenWindow) -> None:
        self._spool, self._system, self._window = spool, system, window
        self._courier = Courier(spool, self._send, rotate_seconds=SEND_SECONDS)
        self._tasks: set[asyncio.Task[None]] = set()

    def start(self) -> None:
        """Send what comes, and what an earlier process left."""
        self._courier.start()

    def note(
        self,
        call_id: str,
        principal: Principal,
        target: Target,
        tokens: Tokens,
        *,
        embedding: bool = False,
        reserved: Counted = NOTHING,
    ) -> None:
        """Keep the records of one call, and count what it used in place of what was `reserved`.

        A kill does not lose them any more; after `sync` a loss of power does not either.

        Raises:
            Problem: 503 `meter_unavailable`, where the disk takes nothing: the call must not be answered.
        """
        name = window_name(principal.tenant_id, principal.subject)
        self._begin(self._window.settle(name, tokens.input + tokens.output, reserved))
        records = records_of(call_id, principal, target, tokens, embedding=embedding)
        if not records:
            return
        values = [record.value.decode() for record in records]
        try:
            self._spool.append(msgspec.json.encode(_Call(principal.tenant_id, records[0].key, values)))
        except OSError as error:
            raise _not_kept(error) from error

    async def sync(self) -> None:
        """Return when all that was noted is on the disk. Raises: Problem 503 `meter_unavailable`."""
        try:
            await self._spool.sync()
        except OSError as error:
            raise _not_kept(error) from error

    def release(self, principal: Principal, reserved: Counted) -> None:
        """Give back what was counted for a call that a run accounts for, or that came to nothing."""
        self._begin(self._window.settle(window_name(principal.tenant_id, principal.subject), 0, reserved))

    async def check(self) -> None:
        """Readiness. Raises: OSError."""
        await self._spool.check()

    async def close(self) -> None:
        """Send what can be sent in a moment; the rest waits on disk for the next process."""
        if self._tasks:
            await asyncio.wait(self._tasks, timeout=CLOSE_SECONDS)
        await self._courier.close()

    def _begin(self, work: Coroutine[Any, Any, None]) -> None:
        task = asyncio.create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def _send(self, segment: Path) -> None:
        lines = await asyncio.to_thread(lines_of, segment)
        calls = [msgspec.json.decode(line, type=_Call) for line in lines]
        async with self._system.writer() as connection:
            if await inbox.seen(connection, CONSUMER, segment.stem):
                return
            for call in calls:
                records = [NewRecord(TOPIC, call.key, value.encode()) for value in call.records]
                await enqueue(connection, records, call.tenant)


@dataclass(slots=True)
class Reservation:
    """Tokens that the gateway counted for one call until its use is known."""

    usage: UsageWriter
    principal: Principal
    counted: Counted

    def take(self) -> Counted:
        """Them, for the one who settles them; nothing is left for another."""
        counted, self.counted = self.counted, NOTHING
        return counted

    def release(self) -> None:
        """Give back what nobody took."""
        self.usage.release(self.principal, self.take())


@dataclass(frozen=True, slots=True)
class CallMeter:
    """Where what one call used is kept."""

    reservation: Reservation
    target: Target
    embedding: bool

    def note(self, call: str, tokens: Tokens) -> None:
        """As `UsageWriter.note`."""
        kept = self.reservation
        kept.usage.note(
            call, kept.principal, self.target, tokens, embedding=self.embedding, reserved=kept.take()
        )

    def nothing(self) -> None:
        """The provider did nothing."""
        self.reservation.release()

    async def sync(self) -> None:
        """As `UsageWriter.sync`."""
        await self.reservation.usage.sync()


def _not_kept(error: OSError) -> Problem:
    _LOG.error("usage cannot be kept", exc=error)
    return Problem(
        503,
        "meter_unavailable",
        "Temporarily unavailable",
        "What the call used cannot be written down now. The provider may have done what was asked.",
        headers={"retry-after": "5"},
    )


def records_of(
    call_id: str, principal: Principal, target: Target, tokens: Tokens, *, embedding: bool = False
) -> list[NewRecord]:
    """Records of one call; the same call gives the same ids."""
    named = {"provider": target.provider.name, "model": target.model}
    events = [
        UsageEvent(
            id=derived_id(call_id, *piece.name),
            source=SOURCE,
            time=now(),
            tenant=principal.tenant_id,
            subject=principal.subject,
            data=UsageData(piece.meter, str(piece.quantity), {**named, **piece.dimensions}),
            type=TYPE,
            specversion="1.0",
        )
        for piece in tokens.pieces(embedding=embedding)
    ]
    return [NewRecord(TOPIC, event.key, event.encode()) for event in events]


def _count(usage: Any, *names: str) -> int:
    for name in names:
        value = usage.get(name) if isinstance(usage, dict) else None
        if isinstance(value, int) and not isinstance(value, bool) and value > 0:
            return value
    return 0
