-- Usage as published from the lake: absolute values that carry the lake version they reflect and only
-- move forward. Everything here can be rebuilt from the lake; nothing here is incremented.
create table usage_cell (
    tenant_id text not null check (tenant_id <> ''),
    grain text not null check (grain in ('hour', 'day')),
    meter text not null,
    period_start timestamptz not null,
    dimensions jsonb not null,
    dimensions_key text not null,
    quantity numeric(38, 9) not null,
    events bigint not null,
    lake_version bigint not null,
    primary key (tenant_id, grain, meter, period_start, dimensions_key)
);
call tenant_table('usage_cell', 'tenant_id', 'all');
grant select on usage_cell to hr_app;
grant select, insert, update, delete on usage_cell to hr_system;

-- Fate of every landed record. Records that name no tenant are booked on '-'. A block is a fixed number
-- of slices: only the newest block still changes, so publishing costs the same however long the history.
create table usage_conservation (
    tenant_id text not null check (tenant_id <> ''),
    topic_id text not null,
    partition integer not null,
    block integer not null,
    landed bigint not null,
    counted bigint not null,
    duplicates bigint not null,
    quarantined bigint not null,
    rejected bigint not null,
    lake_version bigint not null,
    primary key (tenant_id, topic_id, partition, block),
    constraint conserved check (landed = counted + duplicates + quarantined + rejected)
);
call tenant_table('usage_conservation', 'tenant_id', 'all');
grant select on usage_conservation to hr_app;
grant select, insert, update, delete on usage_conservation to hr_system;

-- Up to where the published cells reflect the topic: live quota is cells + tail from next_offset on.
create table usage_watermark (
    topic_id text not null,
    partition integer not null,
    next_offset bigint not null,
    lake_version bigint not null,
    published_at timestamptz not null default now(),
    primary key (topic_id, partition)
);
grant select on usage_watermark to hr_app;
grant select, insert, update, delete on usage_watermark to hr_system;

create table usage_publication (
    lake_version bigint primary key,
    slice bigint not null,
    code_version text not null,
    published_at timestamptz not null default now()
);
grant select on usage_publication to hr_app;
grant select, insert on usage_publication to hr_system;

-- An import declares its source and period, so its events may be older than a live sender's.
create table usage_import (
    tenant_id text not null references organisation (id) check (tenant_id <> ''),
    id text not null check (id <> ''),
    source text not null,
    period_start timestamptz not null,
    period_end timestamptz not null,
    created_by text not null,
    created_at timestamptz not null default now(),
    primary key (tenant_id, id),
    check (period_start <= period_end)
);
call tenant_table('usage_import', 'tenant_id', 'select');
grant select, insert on usage_import to hr_app;
grant select on usage_import to hr_system;

-- Append-only price book. tenant_id '*' is the list price of everybody; a tenant's own entry wins.
-- valid_*: when it holds; recorded_at: since when we know it; revision: which of two rows with one
-- tenant, meter, dimensions and valid_from corrects the other (a clock would not say).
create table price (
    id text primary key check (id <> ''),
    revision bigint generated always as identity unique,
    tenant_id text not null check (tenant_id <> ''),
    meter text not null,
    dimensions jsonb not null default '{}',
    unit_price numeric(38, 12) not null check (unit_price >= 0),
    per bigint not null check (per > 0),
    currency text not null check (currency ~ '^[A-Z]{3}$'),
    valid_from timestamptz not null,
    valid_to timestamptz,
    recorded_at timestamptz not null default now(),
    check (valid_to is null or valid_to > valid_from),
    -- Usage is priced by the hour it lies in.
    check (extract(epoch from valid_from) % 3600 = 0),
    check (valid_to is null or extract(epoch from valid_to) % 3600 = 0)
);
alter table price enable row level security;
alter table price force row level security;
create policy tenant on price for select to hr_app using (tenant_id in ('*', current_tenant()));
create policy system on price for all to hr_system using (true) with check (true);
grant select on price to hr_app;
grant select, insert on price to hr_system;
