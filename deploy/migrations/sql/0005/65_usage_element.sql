-- Meters whose quantities cannot be added up: the elements of each hour with how many events stand for them.
-- A day, a period or a meter as a whole is computed from them (core/aggregation.py). Absolute like the cells;
-- an element whose events were all voided stays with none. `element` sorts by code point.
create table usage_element (
    tenant_id text not null check (tenant_id <> ''),
    meter text not null,
    period_start timestamptz not null,
    dimensions jsonb not null,
    dimensions_key text not null,
    element text collate "C" not null,
    quantity numeric(38, 9) not null,
    events bigint not null check (events >= 0),
    lake_version bigint not null,
    primary key (tenant_id, meter, period_start, dimensions_key, element)
);
call tenant_table('usage_element', 'tenant_id', 'all');
grant select on usage_element to hr_app;
grant select, insert, update, delete on usage_element to hr_system;
