"""Published usage in agreement with itself: every record has one fate, and cells hold what was counted.

Asked for over HTTP, watched as a metric, and asked again in the transaction of each document that charges usage.
"""

from collections.abc import Mapping
from typing import Any, Final

from sqlalchemy import text
from sqlalchemy.ext.asyncio import AsyncConnection

from core.meters import not_summable
from core.rating import ServicePeriod

CONSERVED: Final = "every landed record has one fate"
HOURS: Final = "hourly cells hold every counted event that was not voided"
DAYS: Final = "daily cells hold every counted event that was not voided"
SUMS: Final = "hours and days add up to the same quantities"
ELEMENTS: Final = "what cannot be added up stands for every event of its cells"
GATE: Final = "what landed passes the gate before publication"
PERIOD: Final = "hours and days of the period hold the same events and quantities"
NOBODYS: Final = """
select c.tenant_id, sum(c.events)::bigint, min(c.period_start), max(c.period_start) from usage_cell c
where c.grain = 'hour' and c.events <> 0 and not exists (select 1 from organisation o where o.id = c.tenant_id)
group by c.tenant_id order by 2 desc, 1
"""
"""Usage of organisations that do not exist, most events first (role `system`): organisation, events, first and last
hour. Voided events count no more."""


async def conservation(
    connection: AsyncConnection, period: ServicePeriod | None, *, tenants: int
) -> dict[str, Any]:
    """Fates by partition and by tenant, what must agree with them, and the meters of a period. One statement,
    which is one snapshot.

    Role `app`: of its tenant. Role `system`: of all tenants and of records that name none.

    Args:
        tenants: so many of them at most, those that do not agree first.
    """
    row = (
        await connection.execute(
            text(
                """
                with fates as (
                    select tenant_id, topic_id, partition, sum(landed)::bigint as landed, sum(counted)::bigint as counted,
                           sum(duplicates)::bigint as duplicates, sum(quarantined)::bigint as quarantined,
                           sum(rejected)::bigint as rejected, sum(voids)::bigint as voids,
                           sum(checkpoints)::bigint as checkpoints, max(lake_version) as lake_version
                    from usage_conservation group by tenant_id, topic_id, partition
                ), cells as (
                    select tenant_id, coalesce(sum(events) filter (where grain = 'hour'), 0)::bigint as hour_events,
                           coalesce(sum(events) filter (where grain = 'day'), 0)::bigint as day_events
                    from usage_cell group by tenant_id
                ), tenants as (
                    select tenant_id, coalesce(f.landed, 0) as landed, coalesce(f.counted, 0) as counted,
                           coalesce(f.duplicates, 0) as duplicates, coalesce(f.quarantined, 0) as quarantined,
                           coalesce(f.rejected, 0) as rejected, coalesce(f.voids, 0) as voids,
                           coalesce(f.checkpoints, 0) as checkpoints,
                           coalesce(c.hour_events, 0) as hour_events, coalesce(c.day_events, 0) as day_events
                    from (
                        select tenant_id, sum(landed)::bigint as landed, sum(counted)::bigint as counted,
                               sum(duplicates)::bigint as duplicates, sum(quarantined)::bigint as quarantined,
                               sum(rejected)::bigint as rejected, sum(voids)::bigint as voids,
                               sum(checkpoints)::bigint as checkpoints
                        from fates group by tenant_id) f
                    full join cells c using (tenant_id)
                ), judged as (
                    select *, landed = counted + duplicates + quarantined + rejected as conserved,
                           hour_events = counted - checkpoints - 2 * voids as in_hours,
                           day_events = counted - checkpoints - 2 * voids as in_days
                    from tenants
                ), meters as (
                    select tenant_id, meter,
                           coalesce(sum(events) filter (where grain = 'hour'), 0)::bigint as hour_events,
                           coalesce(sum(events) filter (where grain = 'day'), 0)::bigint as day_events,
                           coalesce(sum(quantity) filter (where grain = 'hour'), 0) as hour_quantity,
                           coalesce(sum(quantity) filter (where grain = 'day'), 0) as day_quantity
                    from usage_cell where period_start >= :start and period_start < :end group by tenant_id, meter
                ), compared as (
                    select *, meter <> all(cast(:others as text[])) as added,
                           hour_events = day_events
                               and (hour_quantity = day_quantity or meter = any(cast(:others as text[]))) as holds
                    from meters
                )
                select
                    (select jsonb_agg(p order by p.topic_id, p.partition) from (
                        select topic_id, partition, sum(landed)::bigint as landed, sum(counted)::bigint as counted,
                               sum(duplicates)::bigint as duplicates, sum(quarantined)::bigint as quarantined,
                               sum(rejected)::bigint as rejected, sum(voids)::bigint as voids,
                               sum(checkpoints)::bigint as checkpoints, max(lake_version) as lake_version
                        from fates group by topic_id, partition) p) as partitions,
                    (select count(*) from fates
                        where landed <> counted + duplicates + quarantined + rejected) as not_conserved,
                    (select count(*) from judged where not in_hours) as not_in_hours,
                    (select count(*) from judged where not in_days) as not_in_days,
                    (select count(*) from judged) as tenants_in_all,
                    (select jsonb_agg(t) from (
                        select * from judged order by conserved and in_hours and in_days, tenant_id limit :tenants) t)
                        as tenants,
                    (select jsonb_agg(m order by m.tenant_id, m.meter) from (
                        select tenant_id, meter, hour_events, day_events, holds,
                               case when added then hour_quantity::text end as hour_quantity,
                               case when added then day_quantity::text end as day_quantity
                        from compared order by holds, tenant_id, meter limit :tenants) m) as meters,
                    (select count(*) from compared where not holds) as unequal_meters,
                    (select count(*) from (
                        select 1 from usage_cell where meter <> all(cast(:others as text[])) group by tenant_id, meter
                        having sum(quantity) filter (where grain = 'hour')
                            is distinct from sum(quantity) filter (where grain = 'day')) d) as unequal_sums,
                    (select count(*) from (
                        select 1 from (
                            select tenant_id, meter, 0 as standing, events from usage_cell
                            where grain = 'hour' and meter = any(cast(:others as text[]))
                            union all select tenant_id, meter, events, 0 from usage_element
                            where meter = any(cast(:others as text[]))) e
                        group by tenant_id, meter having sum(standing) <> sum(events)) d) as unequal_elements,
                    (select jsonb_agg(jsonb_build_array(topic_id, partition, next_offset)) from usage_watermark)
                        as watermark,
                    (select count(*) from usage_gate g where g.problems > 0
                        and (g.generation, g.last_slice) > (coalesce(p.generation, 1), coalesce(p.slice, 0))) as held_up,
                    p.lake_version, p.slice
                from (select 1) one left join (
                    select lake_version, slice, generation from usage_publication order by lake_version desc limit 1) p on true
                """
            ),
            {
                "start": None if period is None else period.start,
                "end": None if period is None else period.end,
                "tenants": tenants,
                "others": not_summable(),
            },
        )
    ).one()
    return dict(row._mapping)


def verdicts(found: Mapping[str, Any], period: ServicePeriod | None) -> dict[str, bool]:
    """Whether each thing holds that must.

    Args:
        found: what `conservation` found for `period`.
    """
    checks = {
        CONSERVED: found["not_conserved"] == 0,
        HOURS: found["not_in_hours"] == 0,
        DAYS: found["not_in_days"] == 0,
        SUMS: found["unequal_sums"] == 0,
        ELEMENTS: found["unequal_elements"] == 0,
        GATE: found["held_up"] == 0,
    }
    if period is not None:
        checks[PERIOD] = found["unequal_meters"] == 0
    return checks
