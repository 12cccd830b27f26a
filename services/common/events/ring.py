"""The newest events of all runs in memory, found by run, conversation and user.

Bounded in bytes and age. For each partition it holds every event from its floor on, so that whoever
resumes at or above the floor misses nothing.
"""

from collections import OrderedDict, deque
from collections.abc import Mapping
from typing import Final, Protocol

import msgspec

from core.contracts.agents import DELTAS, TERMINAL, Head, head
from core.eventlog.api import Record
from core.log import Logger

_RUNS: Final = 100_000
_OVERHEAD: Final = 700
"""Bytes of one entry in memory besides its text, about."""

_log = Logger("services.events")


class Entry:
    """One event as it came from the log."""

    __slots__ = ("at", "head", "offset", "partition", "raw")

    def __init__(self, found: Head, raw: bytes, partition: int, offset: int, at: float) -> None:
        self.head, self.raw, self.partition, self.offset, self.at = found, raw, partition, offset, at


class Listener(Protocol):
    """Who is told of a channel's events as they come. Both calls must be quick and must not raise."""

    def on_event(self, entry: Entry) -> None: ...

    def on_lost(self, reason: str) -> None:
        """Events may be missing from here on: attach again."""
        ...


class RunState:
    """How far a run has come, as far as this process knows."""

    __slots__ = ("done", "epoch", "seq")

    def __init__(self, epoch: int, seq: int) -> None:
        self.epoch, self.seq, self.done = epoch, seq, False


class _Channel:
    __slots__ = ("entries", "listeners")

    def __init__(self) -> None:
        self.entries: deque[Entry] = deque()
        self.listeners: set[Listener] = set()


class Ring:
    """Entries in the order they came, and their channels.

    Args:
        max_bytes: of all entries together.
        max_seconds: entries older than this go.
    """

    def __init__(self, max_bytes: int, max_seconds: float) -> None:
        self._max_bytes, self._max_seconds = max_bytes, max_seconds
        self._entries: deque[Entry] = deque()
        self._channels: dict[str, _Channel] = {}
        self._runs: OrderedDict[str, RunState] = OrderedDict()
        self.bytes = 0
        self.floors: dict[int, int] = {}
        """Of each partition the offset from which on everything is here."""
        self.positions: dict[int, int] = {}
        """Of each partition the offset that comes next."""

    def __len__(self) -> int:
        return len(self._entries)

    @property
    def channels(self) -> int:
        return len(self._channels)

    def reset(self, starts: Mapping[int, int]) -> None:
        """Forget everything and begin at these offsets; listeners stay."""
        self._entries.clear()
        self._runs.clear()
        self.bytes = 0
        self.floors, self.positions = dict(starts), dict(starts)
        for name, channel in list(self._channels.items()):
            channel.entries.clear()
            if not channel.listeners:
                del self._channels[name]

    def lose(self, reason: str) -> None:
        """Tell every listener that it may have missed something."""
        for channel in list(self._channels.values()):
            for listener in tuple(channel.listeners):
                listener.on_lost(reason)

    def run(self, run_id: str) -> RunState | None:
        return self._runs.get(run_id)

    def entries(self, name: str) -> list[Entry]:
        """What memory holds of a channel, oldest first."""
        channel = self._channels.get(name)
        return list(channel.entries) if channel else []

    def attach(self, name: str, listener: Listener) -> None:
        self._channel(name).listeners.add(listener)

    def detach(self, name: str, listener: Listener) -> None:
        channel = self._channels.get(name)
        if channel is not None:
            channel.listeners.discard(listener)
            self._drop_if_empty(name, channel)

    def add(self, record: Record, now: float) -> None:
        """Take in the next record of its partition and tell the listeners.

        Doubles (the relay appends at least once) and events of an epoch that has ended are dropped.
        """
        self.positions[record.partition] = record.offset + 1
        try:
            found = head(record.value)
        except msgspec.MsgspecError as error:
            _log.error(
                "a record of agent.events is not an event",
                partition=record.partition, offset=record.offset, error=str(error),
            )  # fmt: skip
            return
        state = self._runs.get(found.subject)
        gap = False
        if state is None:
            self._runs[found.subject] = state = RunState(found.epoch, found.seq)
            if len(self._runs) > _RUNS:
                self._runs.popitem(last=False)
        else:
            if found.seq <= state.seq or found.epoch < state.epoch:
                return
            gap = found.seq != state.seq + 1
            state.epoch, state.seq = found.epoch, found.seq
            self._runs.move_to_end(found.subject)
        state.done = found.type in TERMINAL
        self._store(Entry(found, record.value, record.partition, record.offset, now), gap)
        self._shrink(now)

    def _store(self, entry: Entry, gap: bool) -> None:
        self._entries.append(entry)
        self.bytes += len(entry.raw) + _OVERHEAD
        for name in names(entry.head):
            channel = self._channel(name)
            if gap and channel.listeners:
                _log.error("events of a run are missing", run=entry.head.subject, before=entry.head.seq)
                for listener in tuple(channel.listeners):
                    listener.on_lost("gap")
            channel.entries.append(entry)
            for listener in tuple(channel.listeners):
                listener.on_event(entry)

    def _shrink(self, now: float) -> None:
        while self._entries and (
            self.bytes > self._max_bytes or self._entries[0].at < now - self._max_seconds
        ):
            entry = self._entries.popleft()
            self.bytes -= len(entry.raw) + _OVERHEAD
            self.floors[entry.partition] = entry.offset + 1
            for name in names(entry.head):
                channel = self._channels[name]
                # Channels keep the order of the whole, so that the oldest entry stands first in each.
                channel.entries.popleft()
                self._drop_if_empty(name, channel)

    def _channel(self, name: str) -> _Channel:
        channel = self._channels.get(name)
        if channel is None:
            channel = self._channels[name] = _Channel()
        return channel

    def _drop_if_empty(self, name: str, channel: _Channel) -> None:
        if not channel.entries and not channel.listeners:
            self._channels.pop(name, None)


def names(found: Head) -> tuple[str, ...]:
    """The channels of an event: a user's has all but the deltas, of one tenant (people may have several)."""
    run, conversation = f"run:{found.subject}", f"conversation:{found.conversation}"
    if found.type in DELTAS:
        return run, conversation
    return run, conversation, f"user:{found.tenant}/{found.user}"
