-- Of the counted records, those that are no usage: a void takes one out of the cells again, a checkpoint
-- adds nothing to them.
alter table usage_conservation
    add column voids bigint not null default 0,
    add column checkpoints bigint not null default 0,
    add constraint counted_kinds check (voids >= 0 and checkpoints >= 0 and voids + checkpoints <= counted);

-- Records that landed and were not counted (duplicates apart), published with the cells. What was
-- decided about one is kept beside it; publishing again changes only what the lake says. What could not
-- be read stays in the lake: here is its size.
create table usage_quarantine (
    tenant_id text not null check (tenant_id <> ''),
    id text not null check (id <> ''),
    fate text not null check (fate in ('quarantined', 'rejected')),
    code text not null,
    kind text,
    received timestamptz not null,
    slice bigint not null,
    topic_id text not null,
    partition integer not null,
    log_offset bigint not null,
    source text,
    event_id text,
    version jsonb,
    counted jsonb,
    bytes bigint,
    lake_version bigint not null,
    state text not null default 'open' check (state in ('open', 'accepted', 'rejected')),
    decided_by text,
    decided_at timestamptz,
    sent jsonb,
    primary key (tenant_id, id),
    check ((state = 'open') = (decided_at is null) and (state = 'open') = (decided_by is null))
);
comment on column usage_quarantine.version is 'What the record said, where it could be read';
comment on column usage_quarantine.counted is 'For a conflict what the counted record of this identity said, and where it stands';
comment on column usage_quarantine.sent is 'Ids of the records that accepting it sent';
create index usage_quarantine_page on usage_quarantine (tenant_id, slice, partition, log_offset);
create index usage_quarantine_all on usage_quarantine (slice, partition, log_offset);
create index usage_quarantine_identity on usage_quarantine (tenant_id, source, event_id) where event_id is not null;
call tenant_table('usage_quarantine', 'tenant_id', 'all');
grant select, update (state, decided_by, decided_at, sent) on usage_quarantine to hr_app;
grant select, insert, update, delete on usage_quarantine to hr_system;

-- Accepting what no organisation sent is up to the owner of the platform.
create policy system_insert on usage_import for insert to hr_system with check (true);
grant insert on usage_import to hr_system;
