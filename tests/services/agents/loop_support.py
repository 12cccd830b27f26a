"""What tests of the loop share: a journal on paper, and runs against a provider that misbehaves."""

import asyncio
import hashlib
import secrets
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from datetime import timedelta
from decimal import Decimal
from typing import Any

import msgspec

from core.clock import now
from core.contracts.agents import TERMINAL, TYPES
from core.contracts.run_events import PAYLOADS
from core.contracts.usage import UsageEvent, parse
from core.eventlog.api import NewRecord
from core.ids import new_id
from core.security.secret import Secret
from core.settings import ProviderSettings, SecuritySettings, ServiceSettings
from services.agents.failures import Policy
from services.agents.journal import FencedError
from services.agents.loop import execute
from services.agents.model import (
    AgentSpec,
    Answered,
    Checkpoint,
    CheckpointKind,
    Limits,
    Outcome,
    Question,
    RunContext,
    StoredMessage,
)
from services.agents.providers import ModelPrice, Provider, Providers, open_providers
from services.agents.tools import Tools
from tests.doubles.provider import ProviderDouble

QUICK = Policy(first_pause=0.01, longest_retry_after=2.0)
KEY = secrets.token_bytes(32)


class Notebook:
    """`Journal` in memory, which can be torn up at a checkpoint as if the instance died there."""

    def __init__(
        self,
        *,
        dies_at: int | None = None,
        earlier: "Notebook | None" = None,
        after: Callable[[int], None] = lambda _: None,
    ) -> None:
        self.cancelled = asyncio.Event()
        self.turn = 0
        self.events: list[tuple[str, dict[str, Any]]] = []
        self.turns: list[tuple[str, int]] = []
        self.checkpoints: list[Checkpoint] = list(earlier.checkpoints) if earlier else []
        self.usage: list[UsageEvent] = list(earlier.usage) if earlier else []
        self.flushes = 0
        self._dies_at, self._after = dies_at, after

    def emit(self, type: str, data: Mapping[str, Any]) -> None:
        assert type in TYPES - TERMINAL, type
        self.events.append((type, msgspec.to_builtins(dict(data))))
        msgspec.convert(self.events[-1][1], PAYLOADS[type])
        self.turns.append((type, self.turn))

    async def flush(self) -> None:
        self.flushes += 1

    async def checkpoint(
        self,
        kind: CheckpointKind,
        payload: bytes,
        records: Sequence[NewRecord] = (),
        messages: Sequence[StoredMessage] = (),
    ) -> None:
        await asyncio.sleep(0)
        if self._dies_at is not None and len(self.checkpoints) >= self._dies_at:
            raise FencedError
        self.checkpoints.append(Checkpoint(len(self.checkpoints) + 1, kind, payload))
        self.usage += [parse(record.value) for record in records]
        self._after(len(self.checkpoints))

    def of(self, type: str) -> list[dict[str, Any]]:
        return [data for name, data in self.events if name == type]

    def types(self) -> list[str]:
        """Types in order, deltas of one kind that follow one another once."""
        found: list[str] = []
        for name, _ in self.events:
            if not found or found[-1] != name:
                found.append(name)
        return found

    def metered(self) -> dict[str, Decimal]:
        """Sum by meter; every id is there once."""
        assert len({event.id for event in self.usage}) == len(self.usage)
        sums: dict[str, Decimal] = {}
        for event in self.usage:
            sums[event.data.meter] = sums.get(event.data.meter, Decimal(0)) + Decimal(event.data.quantity)
        return sums


def assembled(journal: Notebook, message: str) -> str:
    """The text of a message from its deltas, each of which stands where it says."""
    text = ""
    for delta in journal.of("message.delta"):
        if delta["message"] == message:
            assert delta["offset"] == len(text)
            text += delta["text"]
    return text


def check_answer(journal: Notebook, outcome: Outcome) -> dict[str, Any]:
    """The completed message, which is what the deltas say and what the outcome says."""
    assert outcome.status == "completed", outcome
    (completed,) = [one for one in journal.of("message.completed") if one["message"] == outcome.message_id]
    assert completed["text"] == outcome.text
    assert completed["sha256"] == hashlib.sha256(outcome.text.encode()).hexdigest()
    return completed


@dataclass
class Arena:
    """A double, providers that lead to it, and runs."""

    double: ProviderDouble
    providers: Providers
    tools: Tools
    policy: Policy = QUICK
    last: RunContext | None = field(default=None)

    def context(self, question: str = "How do runs resume?", **spec: Any) -> RunContext:
        """A run of a new conversation."""
        more = {
            name: spec.pop(name) for name in ("history", "checkpoints", "epoch", "seconds") if name in spec
        }
        limits = spec.pop("limits", Limits())
        model = spec.pop("model", "double/answer")
        return RunContext(
            run_id=new_id("run"),
            tenant_id="org_test",
            user="usr_test",
            agent_id="agt_test",
            agent_version=1,
            spec=AgentSpec(model=model, limits=limits, **spec),
            conversation_id=new_id("cnv"),
            epoch=more.get("epoch", 1),
            history=more.get("history", ()),
            input=StoredMessage(new_id("msg"), "user", question),
            checkpoints=more.get("checkpoints", ()),
            deadline=now() + timedelta(seconds=more.get("seconds", 30)),
        )

    async def execute(self, run: RunContext, journal: Notebook) -> Outcome:
        return await execute(run, journal, self.providers, self.tools, self.policy)

    async def ask(self, question: str = "How do runs resume?", **spec: Any) -> tuple[Notebook, Outcome]:
        journal = Notebook()
        self.last = self.context(question, **spec)
        return journal, await self.execute(self.last, journal)


@asynccontextmanager
async def arena(tools: Tools, *, idle: float = 5.0) -> AsyncIterator[Arena]:
    """Providers `double` and `priced` (OpenAI's shape) and `claude` (Anthropic's) on one double."""
    double = ProviderDouble()
    settings = ProviderSettings(provider_idle_seconds=idle, provider_connect_seconds=2)
    security = SecuritySettings(internal_key=KEY.hex(), field_key=f"1:{secrets.token_hex(32)}")
    async with (
        double.serve() as address,
        open_providers(settings, ServiceSettings(), security, None) as providers,
    ):
        key = Secret("sk-of-the-double")
        prices = {"answer": ModelPrice(Decimal(1000), Decimal(2000))}
        providers.platform["double"] = Provider("double", "openai", f"{address}/v1", key, ())
        providers.platform["priced"] = Provider("priced", "openai", f"{address}/v1", key, (), prices)
        providers.platform["claude"] = Provider("claude", "anthropic", address, key, ())
        yield Arena(double, providers, tools)


async def until(true: Callable[[], bool]) -> None:
    """Return when it is so; the test's own limit ends what never is."""
    while not true():  # noqa: ASYNC110 - what is waited for has no event
        await asyncio.sleep(0.01)


def resumed(run: RunContext, journal: Notebook, *answers: Answered) -> RunContext:
    """The same run as another instance takes it over, perhaps with what people answered meanwhile."""
    return msgspec.structs.replace(
        run,
        epoch=run.epoch + 1,
        checkpoints=tuple(journal.checkpoints),
        answered=(*run.answered, *answers),
    )


def asked(outcome: Outcome) -> Question:
    """What a run that waits asks."""
    assert outcome.status == "waiting", outcome
    assert outcome.question is not None
    return outcome.question
