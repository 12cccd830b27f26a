-- What protects landed facts. All of it is the platform's own evidence: no tenant reads it.

-- Publications name the generation of the tables they were made from, and up to where they go.
alter table usage_publication
    add column generation integer not null default 1 check (generation > 0),
    add column offsets jsonb not null default '{}';
comment on column usage_publication.offsets is 'Topic id to partition to the next offset';

-- Objects of usage_events as they were written: what a purge rests on, and what is known of an object
-- that is gone. `ranges`: [{"topic_id", "partition", "first", "end"}, …].
create table usage_object (
    generation integer not null check (generation > 0),
    path text not null check (path <> ''),
    bytes bigint not null,
    records bigint not null,
    sha256 text not null check (sha256 ~ '^[0-9a-f]{64}$'),
    first_slice bigint not null,
    last_slice bigint not null,
    ranges jsonb not null,
    tenants jsonb not null,
    recorded_at timestamptz not null default now(),
    checked_at timestamptz not null default now(),
    problem text,
    replaced_at timestamptz,
    primary key (generation, path)
);
comment on column usage_object.checked_at is 'When it was last read whole and compared';
comment on column usage_object.replaced_at is 'Since when the table does not name it any more: its rows lie in another object';
grant select, insert, update, delete on usage_object to hr_system;

-- While a hold stands, nothing it covers is purged.
create table usage_hold (
    id text primary key check (id <> ''),
    name text not null check (name <> ''),
    partition integer check (partition >= 0),
    reason text not null,
    placed_by text not null,
    placed_at timestamptz not null default now(),
    lifted_by text,
    lifted_at timestamptz,
    check ((lifted_at is null) = (lifted_by is null))
);
comment on column usage_hold.partition is 'Null for all partitions of usage.records';
create unique index usage_hold_standing on usage_hold (name) where lifted_at is null;
grant select, insert, update on usage_hold to hr_system;

-- Every purge: the intent with its evidence first, what the log answered afterwards.
create table usage_purge (
    id bigint generated always as identity primary key,
    topic_id text not null,
    partition integer not null check (partition >= 0),
    low_before bigint not null,
    before_offset bigint not null,
    proven_offset bigint not null,
    high bigint not null,
    evidence jsonb not null,
    intended_at timestamptz not null default now(),
    low_after bigint,
    done_at timestamptz,
    check (0 <= low_before and low_before < before_offset),
    check (before_offset <= proven_offset and before_offset <= high),
    check ((done_at is null) = (low_after is null)),
    check (low_after is null or low_after >= before_offset)
);
create index usage_purge_open on usage_purge (topic_id, partition) where done_at is null;
grant select, insert, update on usage_purge to hr_system;

-- Records that were gone from a topic before they landed: what a person accepted as lost, so that landing
-- goes on behind them. An end that nobody knows is null: a topic made anew has taken the old one's with it.
create table landing_loss (
    id text primary key check (id <> ''),
    topic text not null,
    topic_id text not null,
    partition integer not null check (partition >= 0),
    first_offset bigint not null check (first_offset >= 0),
    end_offset bigint check (end_offset > first_offset),
    kind text not null check (kind in ('gap', 'recreated')),
    reason text not null,
    accepted_by text not null,
    accepted_at timestamptz not null default now(),
    unique (topic_id, partition, first_offset),
    check ((end_offset is null) = (kind = 'recreated'))
);
grant select, insert on landing_loss to hr_system;
