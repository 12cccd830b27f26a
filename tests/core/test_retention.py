"""Retention rules follow the topology and the plans as they really are."""

from datetime import timedelta

from sqlalchemy import text

from core.database import Database
from core.eventlog import open_eventlog
from core.messaging import idempotency
from core.personal_data import HOLDINGS
from core.retention import RULES, Enforcer, PlanDays
from core.settings import DatabaseSettings, EventLogSettings
from core.topology import TOPICS


async def test_periods_of_a_plan_come_from_its_row(system_database: Database) -> None:
    async with system_database.reader() as connection:
        plans = {row.code: dict(row._mapping) for row in await connection.execute(text("select * from plan"))}
    assert {column.value for column in PlanDays} <= plans["free"].keys()
    assert RULES["audit"].period(plans["free"]) == timedelta(days=90)
    assert RULES["audit"].period(plans["team"]) == timedelta(days=365)
    assert RULES["usage"].period(plans["free"]) == timedelta(days=400)
    assert RULES["idempotency"].period(plans["free"]) == idempotency.KEEP
    assert RULES["account"].period(plans["free"]) is None


async def test_the_log_keeps_each_topic_as_long_as_its_rule(
    postgres: DatabaseSettings, eventlog_settings: EventLogSettings, system_database: Database
) -> None:
    async with open_eventlog(eventlog_settings, postgres) as log:
        await log.ensure_topics([*TOPICS.values()])
    async with system_database.reader() as connection:
        rows = await connection.execute(
            text("select name, retention_ms from eventlog.topic where name = any(:names)"),
            {"names": [*TOPICS]},
        )
        live = {f"topic.{name}": timedelta(milliseconds=retention) for name, retention in rows}
    assert live == {rule.name: rule.keep for rule in RULES.values() if rule.enforcer is Enforcer.LOG}
    assert len(live) == len(TOPICS)


def test_every_rule_but_those_of_empty_places_is_used() -> None:
    used = {holding.retention for holding in HOLDINGS if holding.personal}
    unused = {name for name in RULES if name not in used}
    # These end things that hold no person.
    assert unused == {
        "inbox",
        "skipped",
        "topic.service.logs",
        "cache.headrace:requests:{name}",
        "cache.headrace:tokens:{name}",
    }
