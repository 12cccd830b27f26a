"""Missing and doubled events are named by producer and number; restarts and reorderings raise no alarm."""

import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest

from assets.slices.progress import made_from
from assets.usage import producers, schema
from assets.usage.completeness import ROWS, Claim, judge, ranges
from assets.usage.landing import land
from assets.usage.producers import Reconciled, reconcile
from core.contracts.usage import Checkpoint, Reference, UsageData, UsageEvent, VoidEvent, identities_hash
from core.contracts.usage import Claim as Said
from core.eventlog.api import Record
from core.settings import DatabaseSettings
from tests.assets.usage.lake import NOW, TOPIC_ID, local_lake, records, slice_of
from tests.assets.usage.test_publish import query

TABLES = "usage_producer, usage_producer_slice, usage_checkpoint, usage_reconciled"


@pytest.fixture
def empty(postgres: DatabaseSettings) -> Iterator[DatabaseSettings]:
    query(postgres, f"truncate {TABLES}")
    yield postgres
    query(postgres, f"truncate {TABLES}")


def event(
    number: int, *, named: str = "", incarnation: str = "", producer: str = "crm", tenant: str = "org_a"
) -> UsageEvent:
    return UsageEvent(
        id=named or f"{producer} {incarnation} {number}", source="crm", time=NOW, tenant=tenant, type="headrace.usage.v1",
        specversion="1.0", data=UsageData("llm.tokens.input", "5"), producer=producer, incarnation=incarnation,
        sequence=number,
    )  # fmt: skip


def checkpoint(events: Sequence[UsageEvent], *, named: str = "", **more: Any) -> bytes:
    """What a producer says that sent exactly these."""
    numbers = [one.sequence or 0 for one in events]
    first, last = min(numbers), max(numbers)
    said = {
        "producer": events[0].producer, "incarnation": events[0].incarnation, "first": first, "last": last,
        "count": last - first + 1, "hash": identities_hash(one.identity for one in events), **more,
    }  # fmt: skip
    return Checkpoint(
        id=named or f"checkpoint {said['producer']} {said['incarnation']} {first}", source="crm", time=NOW,
        tenant=events[0].tenant, type="headrace.usage.checkpoint.v1", specversion="1.0", data=Said(**said),
    ).encode()  # fmt: skip


class Log:
    """A topic of two partitions; slices of it land and are reconciled."""

    def __init__(self, folder: Path, database: DatabaseSettings) -> None:
        self._folder, self._database, self.lake = folder, database, local_lake(folder)
        self.ends, self.topic_id = {0: 0, 1: 0}, TOPIC_ID
        self._waiting: dict[int, list[Record]] = {0: [], 1: []}

    def write(self, values: Sequence[bytes | UsageEvent], partition: int = 0) -> None:
        encoded = [one.encode() if isinstance(one, UsageEvent) else one for one in values]
        self._waiting[partition] += records(encoded, partition=partition, start=self.ends[partition])
        self.ends[partition] += len(values)

    def carry(self, *partitions: int) -> Reconciled:
        """Land what waits in these partitions (all where none is named), and reconcile."""
        self.land(*partitions)
        return self.reconcile()

    def land(self, *partitions: int) -> None:
        batches = [self._waiting.pop(p) for p in partitions or (0, 1) if self._waiting.get(p)]
        self._waiting = {0: [], 1: []} | self._waiting
        if batches:
            piece = slice_of(*batches, topic_id=self.topic_id)
            land(self.lake, self._folder / "index", piece, batches)

    def make_anew(self, topic_id: str) -> None:
        """Delete the topic with all that did not land of it."""
        self.topic_id, self.ends, self._waiting = topic_id, {0: 0, 1: 0}, {0: [], 1: []}

    def accept(self) -> None:
        """What accepting the incident does to the table."""
        table = self.lake.open(schema.EVENTS)
        assert table is not None
        table.alter.set_table_description(made_from(self.topic_id))
        self.lake.forget(schema.EVENTS)

    def reconcile(self) -> Reconciled:
        return reconcile(self.lake, self._database, lambda: (self.topic_id, self.ends))

    def checkpoints(self) -> list[tuple[Any, ...]]:
        return query(
            self._database,
            "select producer, incarnation, first_sequence, state, missing, doubled, repeated, missing_events, "
            "named, closed_at is not null from usage_checkpoint order by producer, incarnation, first_sequence, id",
        )


@pytest.fixture
def log(tmp_path: Path, empty: DatabaseSettings) -> Log:
    return Log(tmp_path, empty)


def test_the_missing_and_the_doubled_are_named_and_mended(log: Log, empty: DatabaseSettings) -> None:
    sent = [event(n) for n in range(1, 101)]
    twin = event(40, named="another work under the same number")
    log.write([one for one in sent if one.sequence != 17])
    log.write([twin, sent[60]], partition=1)
    log.write([checkpoint(sent)], partition=1)
    done = log.carry()
    [row] = log.checkpoints()
    assert row == ("crm", "", 1, "incomplete", [[17, 17]], [[40, 40]], [[61, 61]], 1,
                   {"missing": [[17, 17]], "doubled": [[40, 40]]}, False)  # fmt: skip
    assert (done.open, done.missing, len(done.named)) == (1, 1, 1)
    assert log.reconcile().judged == 0

    log.write([sent[16]])
    done = log.carry()
    assert (log.checkpoints()[0][3:5], done.missing, done.closed) == (("incomplete", []), 0, 0)
    void = VoidEvent(
        id="v", source="x", time=NOW, tenant="org_a", type="headrace.usage.void.v1", specversion="1.0",
        data=Reference("crm", twin.id),
    )  # fmt: skip
    log.write([void.encode()])
    done = log.carry()
    [row] = log.checkpoints()
    assert row[3:8] == ("complete", [], [], [[61, 61]], 0)
    assert row[8:] == ({"missing": [[17, 17]], "doubled": [[40, 40]]}, True)
    assert (done.open, done.closed) == (0, 1)
    assert query(empty, "select count(*) from usage_producer_slice") == [(0,)]


def test_a_checkpoint_waits_for_all_that_was_sent_before_it(log: Log) -> None:
    """A partition that lags is no loss."""
    sent = [event(n) for n in range(1, 11)]
    log.write(sent[:5])
    log.write([*sent[5:], checkpoint(sent)], partition=1)
    done = log.carry(1)
    assert (log.checkpoints()[0][3], done.open, done.judged) == ("waiting", 0, 0)
    done = log.carry(0)
    assert (log.checkpoints()[0][3], done.open, done.judged, done.named) == ("complete", 0, 1, [])


def test_what_waited_for_a_topic_that_is_no_more_is_judged(log: Log) -> None:
    """Once its successor was accepted; until then, more of the old one may be what is looked for."""
    sent = [event(n) for n in range(1, 11)]
    log.write(sent[:5])
    log.write([*sent[5:8], checkpoint(sent)], partition=1)
    log.carry(1)
    log.make_anew("topic-2")
    assert (log.reconcile().judged, log.checkpoints()[0][3]) == (0, "waiting")
    log.accept()
    done = log.reconcile()
    assert log.checkpoints()[0][3:5] == ("incomplete", [[1, 5], [9, 10]])
    assert (done.open, done.missing, len(done.named)) == (1, 7, 1)
    log.write(sent)
    done = log.carry()
    assert (log.checkpoints()[0][3], done.open, done.closed) == ("complete", 0, 1)


def test_a_checkpoint_that_was_read_beside_a_topic_made_anew_waits_for_that(log: Log) -> None:
    sent = [event(n) for n in range(1, 6)]
    log.write([*sent[:4], checkpoint(sent)])
    log.land()
    log.make_anew("topic-2")
    log.write([sent[4]])
    assert (log.reconcile().judged, log.checkpoints()[0][3]) == (0, "waiting")
    log.accept()
    assert log.carry().named == []
    assert log.checkpoints()[0][3] == "complete"


@pytest.mark.parametrize("incarnations", [("a", "b"), ("", "")])
def test_a_restart_raises_no_alarm(log: Log, incarnations: tuple[str, str]) -> None:
    """Numbers begin again, or go on behind a hole; what was sent and not claimed when it died is never missing,
    and what it sends again is known."""
    first, second = incarnations
    begin = 1 if first != second else 40
    before = [event(n, incarnation=first) for n in range(1, 31)]
    after = [event(n, incarnation=second) for n in range(begin, begin + 20)]
    log.write([*before[:20], checkpoint(before[:20]), *before[20:29]])
    log.carry()
    # It does not know that the last claimed ones and their checkpoint arrived.
    log.write([*before[10:20], checkpoint(before[:20]), checkpoint(before[:20], named="once more"), *after])
    log.carry()
    log.write([checkpoint(after)])
    done = log.carry()
    assert [row[3] for row in log.checkpoints()] == ["complete"] * 3
    assert (done.open, done.named) == (0, [])
    assert log.checkpoints()[0][6] == [[11, 20]]


def test_other_events_than_the_ones_claimed_are_seen(log: Log) -> None:
    sent = [event(n) for n in range(1, 6)]
    log.write([*sent[:4], event(5, named="not what was sent"), checkpoint(sent)])
    assert log.carry().open == 1
    assert log.checkpoints()[0][3] == "different"


def test_producers_of_two_organisations_have_nothing_to_do_with_each_other(
    log: Log, empty: DatabaseSettings
) -> None:
    ours, theirs = ([event(n, tenant=tenant) for n in range(1, 4)] for tenant in ("org_a", "org_b"))
    log.write([*ours, *theirs[:2], checkpoint(ours), checkpoint(theirs)])
    log.carry()
    assert query(empty, "select tenant_id, state from usage_checkpoint order by 1") == [
        ("org_a", "complete"),
        ("org_b", "incomplete"),
    ]


def test_what_never_arrived_at_all_is_named_too(log: Log, empty: DatabaseSettings) -> None:
    sent = [event(n) for n in range(1, 4)]
    log.write([checkpoint(sent)])
    log.carry()
    assert log.checkpoints()[0][3:5] == ("incomplete", [[1, 3]])
    assert query(empty, "select producer, last_sequence from usage_producer") == [("crm", 0)]
    log.write(sent)
    log.carry()
    assert log.checkpoints()[0][3] == "complete"


@pytest.mark.parametrize("later", [False, True], ids=["at once", "checkpoints later"])
def test_a_thousand_and_one_lives_raise_no_alarm(
    log: Log, empty: DatabaseSettings, monkeypatch: pytest.MonkeyPatch, *, later: bool
) -> None:
    """Of an organisation with more streams than are followed, each claim is judged by all rows that landed."""
    lives = 1001
    if later:  # the same, without a read of the lake for each of a thousand
        lives, limit = 7, 5
        monkeypatch.setattr(producers, "STREAMS", limit)
    sent = [[event(n, incarnation=f"{life:04}") for n in (1, 2, 3)] for life in range(lives)]
    other = [event(n, tenant="org_b") for n in (1, 2)]
    log.write([one for events in sent[:-1] for one in events] + sent[-1][:2] + other)
    claims = [checkpoint(events) for events in (*sent[-10:], other)]
    if later:
        log.carry()
    log.write(claims, partition=1)
    done = log.carry()
    assert (done.judged, done.open, done.missing) == (len(claims), 1, 1)
    assert [row[3:5] for row in log.checkpoints()[-1:]] == [("incomplete", [[3, 3]])]
    log.write([sent[-1][2], *(one for events in sent[:-1] for one in events)])
    assert log.carry().open == 0
    assert query(empty, "select count(*) from usage_checkpoint where state <> 'complete'") == [(0,)]


def test_only_the_first_claim_of_a_stream_looks_where_the_others_lie(
    log: Log, empty: DatabaseSettings, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each look with many streams adds a slice of theirs: claims must not read ever more of them."""
    monkeypatch.setattr(producers, "STREAMS", 1)
    crowd = [event(n, incarnation=f"{life}") for life in ("a", "b", "c") for n in range(1, 5)]
    ours = [event(n, incarnation="z") for n in range(1, 5)]
    for number in range(4):
        log.write([ours[number], *crowd[number::4], *([checkpoint(ours[:2])] if number == 1 else [])])
        log.carry()
    log.write([checkpoint(ours[2:])])
    assert log.carry().open == 0
    assert query(empty, "select state, cardinality(slices) from usage_checkpoint order by slice") == [
        ("complete", 2),
        ("complete", 2),
    ]


@pytest.mark.parametrize(
    "cause", [f"truncate {TABLES}", "update usage_reconciled set table_id = 'of another generation'"]
)
def test_going_through_it_all_again_gives_the_same(log: Log, empty: DatabaseSettings, cause: str) -> None:
    """The database was lost, or another generation counts; slices are gone through in one sweep."""
    sent = [event(n) for n in range(1, 201)]
    for low in range(0, 200, 50):
        log.write([one for one in sent[low : low + 50] if one.sequence not in {7, 99}])
        log.write([checkpoint(sent[low : low + 50])], partition=1)
        log.carry()
    log.write([sent[98]])
    log.carry()
    shown = [row[:8] for row in log.checkpoints()]
    assert [row[3] for row in shown] == ["incomplete", "complete", "complete", "complete"]
    query(empty, cause)
    log.reconcile()
    assert [row[:8] for row in log.checkpoints()] == shown


def test_quarantined_events_have_arrived(log: Log) -> None:
    sent = [event(n) for n in range(1, 4)]
    other = UsageEvent(**{name: getattr(sent[1], name) for name in sent[1].__struct_fields__} | {
        "data": UsageData("llm.tokens.input", "6"), "sequence": 4,
    })  # fmt: skip
    log.write([*sent, other, checkpoint([*sent, other])])
    log.carry()
    assert log.checkpoints()[0][3:5] == ("complete", [])


def test_ranges_of_numbers() -> None:
    assert ranges(np.array([], np.int64)) == []
    assert ranges(np.array([1, 2, 3, 7, 9, 10])) == [(1, 3), (7, 7), (9, 10)]


def test_a_claim_beyond_everything_is_one_range() -> None:
    rows = pl.DataFrame({"slice": [1], "partition": [0], "offset": [0], "sequence": [5], "identity": [b"x" * 16],
                         "fate": ["counted"]}, schema=ROWS)  # fmt: skip
    nothing = pl.DataFrame(schema={name: ROWS[name] for name in ("slice", "partition", "offset")})
    verdict = judge(Claim(1, 2**53 - 1, ""), rows, nothing)
    assert (verdict.missing, verdict.missing_events) == ([(1, 4), (6, 2**53 - 1)], 2**53 - 2)
    assert json.loads(json.dumps(verdict.missing)) == [[1, 4], [6, 2**53 - 1]]
