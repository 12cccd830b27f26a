"""Holds: the owner of the platform keeps records of usage in the event log, for as long as it takes."""

import re
from datetime import datetime
from typing import Annotated, Any, Final, Literal

import msgspec
from msgspec import Meta
from sqlalchemy import text
from sqlalchemy.ext.asyncio import AsyncConnection
from typing_extensions import TypedDict

from core import audit
from core.clock import rfc3339
from core.database import Database
from core.holds import LOCK
from core.ids import new_id
from core.topology import TOPICS
from services.common.auth import Principal
from services.common.errors import Problem, invalid, not_found

MOST: Final = 100
_NAME: Final = re.compile(r"[a-z0-9][a-z0-9-]{0,63}", re.ASCII)
_COLUMNS: Final = "name, partition, reason, placed_by, placed_at, lifted_by, lifted_at"
_PARTITIONS: Final = TOPICS["usage.records"].partitions


class NewHold(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """`partition` is left out for the whole topic."""

    reason: Annotated[str, Meta(min_length=1, max_length=500, description="Why; kept with the hold.")]
    partition: Annotated[int, Meta(ge=0, lt=_PARTITIONS)] | None = None


class HoldShown(TypedDict):
    name: str
    object: Literal["usage_hold"]
    partition: int | None
    reason: str
    placed_by: str
    placed_at: str
    lifted_by: str | None
    lifted_at: str | None


class HoldsShown(TypedDict):
    object: Literal["list"]
    data: list[HoldShown]
    has_more: bool


class Holds:
    def __init__(self, system: Database) -> None:
        self._system = system

    async def page(self, principal: Principal) -> HoldsShown:
        """Those that stand, then those that were lifted last; none for others than the platform's owner."""
        if not principal.platform_owner:
            return {"object": "list", "data": [], "has_more": False}
        async with self._system.reader() as connection:
            rows = await connection.execute(
                text(
                    f"select {_COLUMNS} from usage_hold order by lifted_at desc nulls first, placed_at desc limit :most"
                ),
                {"most": MOST + 1},
            )
            found = [_shown(row) for row in rows]
        return {"object": "list", "data": found[:MOST], "has_more": len(found) > MOST}

    async def place(self, principal: Principal, name: str, body: NewHold) -> HoldShown:
        """Place it, or find it placed. When this answers, no purge deletes what it covers.

        Raises:
            Problem: 404, 409 `hold_exists`, 422.
        """
        _may_see(principal)
        if not _NAME.fullmatch(name):
            raise invalid("/name", "a name has up to 64 of a-z, 0-9 and -, and does not begin with -")
        async with self._system.writer() as connection:
            await connection.execute(text("select pg_advisory_xact_lock(:lock)"), {"lock": LOCK})
            standing = await _standing(connection, name)
            if standing is None:
                await connection.execute(
                    text(
                        "insert into usage_hold (id, name, partition, reason, placed_by) "
                        "values (:id, :name, :partition, :reason, :by)"
                    ),
                    {
                        "id": new_id("hold"), "name": name, "partition": body.partition, "reason": body.reason,
                        "by": principal.subject,
                    },
                )  # fmt: skip
                await _record(connection, "usage.hold_place", principal, name)
                standing = await _standing(connection, name)
        if standing is None or (standing["partition"], standing["reason"]) != (body.partition, body.reason):
            raise Problem(
                409,
                "hold_exists",
                "There is such a hold",
                f"A hold {name} stands with another partition or reason; lift it first, or choose another name.",
            )
        return standing

    async def lift(self, principal: Principal, name: str) -> HoldShown:
        """Raises: Problem 404."""
        _may_see(principal)
        async with self._system.writer() as connection:
            row = (
                await connection.execute(
                    text(
                        "update usage_hold set lifted_at = now(), lifted_by = :by "
                        f"where name = :name and lifted_at is null returning {_COLUMNS}"
                    ),
                    {"name": name, "by": principal.subject},
                )
            ).one_or_none()
            if row is None:
                raise not_found("hold")
            await _record(connection, "usage.hold_lift", principal, name)
        return _shown(row)


async def _standing(connection: AsyncConnection, name: str) -> HoldShown | None:
    row = (
        await connection.execute(
            text(f"select {_COLUMNS} from usage_hold where name = :name and lifted_at is null"),
            {"name": name},
        )
    ).one_or_none()
    return None if row is None else _shown(row)


async def _record(connection: AsyncConnection, action: str, principal: Principal, name: str) -> None:
    await audit.record(
        connection, action=action, actor=principal.subject, tenant_id=audit.NO_TENANT, target=name,
        outcome="success",
    )  # fmt: skip


def _may_see(principal: Principal) -> None:
    """Raises: Problem 404. Holds are nothing of a tenant's."""
    if not principal.platform_owner:
        raise not_found("hold")


def _shown(row: Any) -> HoldShown:
    def moment(value: datetime | None) -> str | None:
        return None if value is None else rfc3339(value)

    return {
        "name": row.name,
        "object": "usage_hold",
        "partition": row.partition,
        "reason": row.reason,
        "placed_by": row.placed_by,
        "placed_at": rfc3339(row.placed_at),
        "lifted_by": row.lifted_by,
        "lifted_at": moment(row.lifted_at),
    }
