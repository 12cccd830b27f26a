-- Corrected prices over closed service periods: what they would change (the dry run), what a person decided,
-- what was posted. Nothing here is charged; what is charged stands in `invoice`.
create table price_fix (
    id text primary key check (id <> ''),
    state text not null check (state in ('proposed', 'parked', 'approved', 'applied', 'rejected')),
    price_revision bigint not null,
    tenants text[],
    reasons text[] not null,
    totals jsonb not null,
    items integer not null,
    created_by text not null,
    created_at timestamptz not null default now(),
    decided_by text,
    decided_at timestamptz,
    accepted text[] not null default '{}',
    applied_by text,
    applied_at timestamptz,
    check ((state in ('proposed', 'parked')) = (decided_at is null)),
    check ((decided_at is null) = (decided_by is null)),
    check ((state = 'applied') = (applied_at is not null))
);
comment on column price_fix.tenants is 'Organisations that were looked at; null for all';
comment on column price_fix.reasons is 'Safety bounds that were passed: such a fix is parked until a person accepts each';
comment on column price_fix.totals is 'Sum of the differences by currency, as text';

create table price_fix_item (
    price_fix text not null references price_fix (id),
    tenant_id text not null check (tenant_id <> ''),
    period_start timestamptz not null,
    period_end timestamptz not null,
    adjusts text not null,
    from_revision bigint not null,
    slice bigint not null,
    lake_version bigint not null,
    currency text,
    total numeric not null,
    reasons text[] not null,
    lines jsonb not null,
    unpriced jsonb not null,
    primary key (price_fix, tenant_id, period_start, period_end)
);
comment on table price_fix_item is 'The difference of one service period, posted as it stands here';
do $$
declare t text;
begin
    foreach t in array array['price_fix', 'price_fix_item'] loop
        execute format('alter table %I enable row level security', t);
        execute format('alter table %I force row level security', t);
        execute format('create policy system on %I for all to hr_system using (true) with check (true)', t);
    end loop;
end $$;
grant select, insert, update on price_fix to hr_system;
grant select, insert on price_fix_item to hr_system;
