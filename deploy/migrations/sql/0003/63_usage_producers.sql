-- What producers say they have sent, beside what has landed. All of it follows from the lake: it is judged
-- again whenever a record of its range lands, and forgetting it loses nothing but history.
create table usage_producer (
    tenant_id text not null check (tenant_id <> ''),
    id text not null check (id <> ''),
    producer text not null,
    incarnation text not null,
    last_sequence bigint not null,
    first_received timestamptz not null,
    last_received timestamptz not null,
    last_slice bigint not null,
    primary key (tenant_id, producer, incarnation)
);
create unique index usage_producer_id on usage_producer (tenant_id, id);
create index usage_producer_page on usage_producer (last_slice, id);
call tenant_table('usage_producer', 'tenant_id', 'all');
grant select on usage_producer to hr_app;
grant select, insert, update, delete on usage_producer to hr_system;

-- Slices that hold records of a producer which no checkpoint claims yet, and the span of their numbers.
create table usage_producer_slice (
    tenant_id text not null check (tenant_id <> ''),
    producer text not null,
    incarnation text not null,
    slice bigint not null,
    first_sequence bigint not null,
    last_sequence bigint not null,
    received timestamptz not null,
    primary key (tenant_id, producer, incarnation, slice)
);
create index usage_producer_slice_received on usage_producer_slice using brin (received);
call tenant_table('usage_producer_slice', 'tenant_id', 'all');
grant select, insert, update, delete on usage_producer_slice to hr_system;

-- A checkpoint and its verdict. Sequences are JSON arrays of [first, last]; `named` is what was missing or
-- doubled when it was judged first.
create table usage_checkpoint (
    tenant_id text not null check (tenant_id <> ''),
    id text not null check (id <> ''),
    producer text not null,
    incarnation text not null,
    first_sequence bigint not null,
    last_sequence bigint not null,
    hash text not null,
    received timestamptz not null,
    slice bigint not null,
    slices bigint[] not null,
    due jsonb not null,
    state text not null default 'waiting' check (state in ('waiting', 'complete', 'incomplete', 'different')),
    missing jsonb not null default '[]',
    doubled jsonb not null default '[]',
    repeated jsonb not null default '[]',
    missing_events bigint not null default 0,
    named jsonb,
    named_at timestamptz,
    closed_at timestamptz,
    primary key (tenant_id, id),
    check (first_sequence <= last_sequence)
);
comment on column usage_checkpoint.due is 'Topic id and offsets: judged once the lake holds the log up to here, where it ended when the checkpoint was read';
comment on column usage_checkpoint.slices is 'Slices that hold records of its range';
create index usage_checkpoint_range on usage_checkpoint (tenant_id, producer, incarnation, last_sequence);
create index usage_checkpoint_open on usage_checkpoint (state) where state <> 'complete';
call tenant_table('usage_checkpoint', 'tenant_id', 'all');
grant select on usage_checkpoint to hr_app;
grant select, insert, update, delete on usage_checkpoint to hr_system;

-- Up to which slice of the landed table (by its id) producers were reconciled.
create table usage_reconciled (
    table_id text primary key,
    slice bigint not null
);
grant select, insert, update, delete on usage_reconciled to hr_system;
