"""Records of `audit.logs` as columns. Pure."""

import hashlib
from collections.abc import Iterable
from typing import Any

import msgspec
import polars as pl

from assets.audit.schema import EVENTS_SCHEMA
from assets.slices.fates import OUTCOME, Parsed, halves
from core.contracts.audit import NO_TENANT, parse
from core.contracts.usage import ContractError
from core.eventlog.api import Record

_CANONICAL = msgspec.json.Encoder(order="deterministic")
_DECIDED_LATER = {"slice", "topic_id", *OUTCOME} - {"code", "raw"}
COLUMNS = {name: kind for name, kind in EVENTS_SCHEMA.items() if name not in _DECIDED_LATER}
FACTS = ("actor", "action", "target", "outcome", "trace_id", "sealed")


def parse_records(batches: Iterable[list[Record]]) -> Parsed:
    """Read every record; rows come out in the order of partition and offset.

    The identity of an event is its id, which is random and ours, so there is no limit of time: an
    audit event that comes late is as true as one that comes at once.
    """
    records = sorted(
        (record for batch in batches for record in batch), key=lambda each: (each.partition, each.offset)
    )
    frame = pl.DataFrame([_row(record) for record in records], schema=COLUMNS, orient="row")
    readable = frame["code"].is_null()
    high, low = halves(b"".join(frame["identity"].fill_null(bytes(16))))
    return Parsed(
        frame,
        frame["partition"].to_numpy(),
        frame["offset"].to_numpy(),
        readable.to_numpy(),
        readable.to_numpy(),
        high,
        low,
        frame["content"].fill_null(0).to_numpy(),
    )


def _row(record: Record) -> dict[str, Any]:
    row: dict[str, Any] = dict.fromkeys(COLUMNS) | {
        "partition": record.partition,
        "offset": record.offset,
        "received": record.timestamp_ms * 1000,
    }
    try:
        event = parse(record.value)
    except ContractError as error:
        owner = record.key.decode(errors="replace").replace("\x00", "\ufffd")[:128]
        return row | {"tenant": owner or NO_TENANT, "code": error.code, "raw": record.value}
    digest = hashlib.sha256(_CANONICAL.encode(event)).digest()
    return row | {
        "tenant": event.tenant,
        "event_id": event.id,
        "identity": hashlib.sha256(event.id.encode()).digest()[:16],
        "content": int.from_bytes(digest[:8], "little", signed=True),
        "event_time": event.time,
        "detail": _CANONICAL.encode(event.detail).decode(),
        **{name: getattr(event, name) for name in FACTS},
    }
