"""An audit event is part of the transaction it tells of."""

import pytest
from opentelemetry.sdk.trace import TracerProvider
from sqlalchemy import text

from core import audit
from core.contracts.audit import AuditEvent, parse
from core.contracts.usage import ContractError
from core.database import Database, tenant
from core.ids import new_id


async def recorded(database: Database, tenant_id: str) -> list[AuditEvent]:
    async with database.reader() as connection:
        rows = await connection.execute(
            text("select value from outbox where topic = 'audit.logs' and tenant_id = :tenant order by id"),
            {"tenant": tenant_id},
        )
        return [parse(bytes(row[0])) for row in rows]


async def test_event_waits_in_the_outbox(app_database: Database, system_database: Database) -> None:
    org, key = new_id("org"), new_id("key")
    tracer = TracerProvider().get_tracer("test")
    with tenant(org), tracer.start_as_current_span("request") as span:
        async with app_database.writer() as connection:
            event_id = await audit.record(
                connection, action="api_key.revoke", actor="usr_1", tenant_id=org, target=key, outcome="success",
                detail={"scopes": "usage:write"},
            )  # fmt: skip
    (event,) = await recorded(system_database, org)
    assert (event.id, event.tenant, event.target, event.outcome) == (event_id, org, key, "success")
    assert event.trace_id == f"{span.get_span_context().trace_id:032x}"


@pytest.mark.parametrize(
    ("wrong", "error"),
    [
        ({"action": "api_key.admire"}, ValueError),
        ({"detail": {"email": "jo@example.com"}}, ContractError),
        ({"actor": "Jo"}, ContractError),
        ({"outcome": "perhaps"}, ContractError),
    ],
)
async def test_what_cannot_be_recorded_cannot_happen(
    app_database: Database, system_database: Database, wrong: dict[str, object], error: type[Exception]
) -> None:
    org = new_id("org")
    good: dict[str, object] = {
        "action": "api_key.revoke", "actor": "usr_1", "tenant_id": org, "target": "key_1", "outcome": "success",
    }  # fmt: skip

    async def act() -> None:
        async with app_database.writer() as connection:
            await audit.record(connection, **good)  # type: ignore[arg-type]
            await audit.record(connection, **good | wrong)  # type: ignore[arg-type]

    with tenant(org), pytest.raises(error):
        await act()
    assert await recorded(system_database, org) == []


async def test_without_a_tenant_only_the_system_records(
    app_database: Database, system_database: Database
) -> None:
    async with system_database.writer() as connection:
        event_id = await audit.record(
            connection, action="auth.login_failed", actor="system", tenant_id=audit.NO_TENANT, target="system",
            outcome="denied",
        )  # fmt: skip
    assert event_id in {event.id for event in await recorded(system_database, audit.NO_TENANT)}
