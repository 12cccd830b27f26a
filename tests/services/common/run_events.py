"""Events of runs as the agents service writes them."""

import hashlib
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any

from core.clock import now
from core.contracts.agents import EVENTS, AgentEvent
from core.eventlog.api import NewRecord
from core.ids import new_id

WORDS = ("The ", "quick ", "brüne ", "狐狸 ", "jumps 🦊 ", "over ", "the ", "lazy ", "dog. ")


def record(event: AgentEvent) -> NewRecord:
    return NewRecord(EVENTS, event.key, event.encode())


@dataclass
class Run:
    """One run of its own conversation and user, unless others are given."""

    tenant: str = field(default_factory=lambda: new_id("org"))
    user: str = field(default_factory=lambda: new_id("usr"))
    conversation: str = field(default_factory=lambda: new_id("cnv"))
    id: str = field(default_factory=lambda: new_id("run"))
    epoch: int = 1
    seq: int = 0
    text: str = ""

    def event(self, kind: str, **data: Any) -> AgentEvent:
        self.seq += 1
        return AgentEvent(
            id=f"{self.id}:{self.epoch}:{self.seq}", type=kind, subject=self.id, time=now(), tenant=self.tenant,
            user=self.user, agent="agt_1", agentversion=1, conversation=self.conversation, seq=self.seq,
            epoch=self.epoch, turn=1, data=data,
        )  # fmt: skip

    def deltas(self, count: int) -> list[AgentEvent]:
        found = []
        for _ in range(count):
            word = WORDS[self.seq % len(WORDS)]
            found.append(self.event("message.delta", message="msg_1", offset=len(self.text), text=word))
            self.text += word
        return found

    def end(self) -> list[AgentEvent]:
        digest = hashlib.sha256(self.text.encode()).hexdigest()
        return [
            self.event("message.completed", message="msg_1", text=self.text, citations=[], sha256=digest),
            self.event("run.completed", message="msg_1", usage={}),
        ]

    def whole(self, deltas: int = 20) -> list[AgentEvent]:
        return [self.event("run.started"), *self.deltas(deltas), *self.end()]


def records(events: Iterable[AgentEvent]) -> list[NewRecord]:
    return [record(event) for event in events]
