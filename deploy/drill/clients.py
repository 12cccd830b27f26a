"""Clients of the drill of conversations: they ask twice, lose their connections, and put texts together."""

import asyncio
import random
import time
from collections.abc import Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Any, Final

import httpx2

from deploy.demo.follower import Followed, follow
from deploy.demo.run import DemoError
from deploy.drill.platform import DrillError

SHORTEST, LONGEST = 8, 48
"""Terms of a sum. At 40 ms a word its answer takes 0.6 to 4 s, and the call of the tool as long before."""
WORD_MS: Final = 40
HELD: Final = (1.0, 3.0)
"""Seconds that a client keeps a connection, at random."""
PATIENCE: Final = 180.0
"""Seconds that a run may take, its instance's death included."""


@dataclass(slots=True)
class Load:
    """What the clients saw."""

    runs: dict[str, list[Followed]] = field(default_factory=dict)
    """Run to what each of its clients put together."""
    conversations: dict[str, int] = field(default_factory=dict)
    """Conversation to messages sent in it."""
    retries: int = 0

    @property
    def texts(self) -> list[Followed]:
        return [one for followed in self.runs.values() for one in followed]


class Anywhere:
    """Calls to whichever gateway answers; all of them are safe to repeat."""

    def __init__(self, gateways: Sequence[str], key: str, load: Load) -> None:
        self._gateways, self._load = list(gateways), load
        self._http = httpx2.AsyncClient(headers={"authorization": f"Bearer {key}"}, timeout=20.0)

    async def post(self, path: str, body: dict[str, Any]) -> Any:
        """Raises: DrillError after a minute of refusals, or at once for a 4xx that no repeating mends."""
        deadline = time.monotonic() + 60
        for attempt in range(10_000):
            gateway = self._gateways[attempt % len(self._gateways)]
            why = "no answer"
            with suppress(httpx2.TransportError):
                answer = await self._http.post(f"{gateway}{path}", json=body)
                if answer.status_code < 400:
                    return answer.json()
                why = f"{answer.status_code} {answer.text[:200]}"
                if answer.status_code < 500 and answer.status_code not in {408, 425, 429}:
                    break
            self._load.retries += 1
            if time.monotonic() > deadline:
                break
            await asyncio.sleep(0.2)
        raise DrillError(f"POST {path}: {why}")

    async def ticket(self) -> str:
        return str((await self.post("/api/v1/ws/tickets", {}))["ticket"])

    async def close(self) -> None:
        await self._http.aclose()


@dataclass(slots=True)
class Clients:
    """So many people who talk at once, each in a conversation of its own, until `numbers` are used up."""

    anywhere: Anywhere
    sockets: Sequence[str]
    agent: str
    watchers: int
    """Clients that follow each run."""
    source: random.Random
    load: Load

    async def talk(self, at_once: int, runs: int) -> None:
        """Raises: DrillError, the first of them."""
        numbers = iter(range(runs))
        try:
            async with asyncio.TaskGroup() as group:
                for _ in range(at_once):
                    group.create_task(self._person(numbers))
        except* DrillError as errors:
            error: BaseException = errors
            while isinstance(error, BaseExceptionGroup):
                error = error.exceptions[0]
            raise error from None

    async def _person(self, numbers: Iterator[int]) -> None:
        conversation: str | None = None
        for number in numbers:
            conversation = await self._message(conversation, number)

    async def _message(self, conversation: str | None, number: int) -> str:
        """One message and its run, followed to the end; returns the conversation."""
        path = f"/api/v1/agents/{self.agent}/runs"
        body: dict[str, Any] = {"input": self._sum(number), "client_msg_id": f"drill-{number}"}
        if conversation is not None:
            body["conversation_id"] = conversation
        # Sent twice on purpose: the second must name the same run.
        first = await self.anywhere.post(path, body)
        again = await self.anywhere.post(path, {**body, "conversation_id": first["conversation_id"]})
        run, name = str(first["run_id"]), str(first["conversation_id"])
        if again["run_id"] != run:
            raise DrillError(f"message drill-{number} became two runs: {run}, {again['run_id']}")
        followed = await asyncio.gather(*(self._follow(run) for _ in range(self.watchers)))
        self.load.runs[run] = list(followed)
        self.load.conversations[name] = self.load.conversations.get(name, 0) + 1
        return name

    async def _follow(self, run: str) -> Followed:
        order = self.source.sample(list(self.sockets), len(self.sockets))
        try:
            return await follow(
                self.anywhere.ticket, order, run, hold=lambda: self.source.uniform(*HELD), patience=PATIENCE
            )
        except DemoError as error:
            raise DrillError(str(error)) from error

    def _sum(self, number: int) -> str:
        terms = [str(number), *(str(self.source.randint(1, 999)) for _ in range(self.source.randint(SHORTEST, LONGEST)))]  # fmt: skip
        return f"What is {' + '.join(terms)}?"
