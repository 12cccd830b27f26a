-- Outbox: what a transaction wants to tell the event log. The relay appends and deletes it (law 7).
-- Ids are given at insert, not at commit: transactions that run at the same time have no order
-- between them; one that began after another's commit comes behind it.
create table outbox (
    id bigint generated always as identity primary key,
    tenant_id text not null check (tenant_id <> ''),
    topic text not null check (topic <> ''),
    key bytea not null,
    value bytea not null,
    headers bytea,
    enqueued_at timestamptz not null default clock_timestamp()
);
comment on column outbox.headers is 'MessagePack: array of [name, bytes]; null without headers';
-- The head of the primary key is deleted all the time; without this the relay walks over dead rows.
alter table outbox set (
    autovacuum_vacuum_scale_factor = 0, autovacuum_vacuum_threshold = 2000,
    autovacuum_vacuum_insert_threshold = -1, autovacuum_vacuum_cost_delay = 0);
call tenant_table('outbox', 'tenant_id', 'all');
grant insert on outbox to hr_app;
grant select, insert, delete on outbox to hr_system;

-- Records that the event log will never take as they are. Kept until a person replays or drops them.
create table outbox_dead (
    id bigint primary key,
    tenant_id text not null check (tenant_id <> ''),
    topic text not null,
    key bytea not null,
    value bytea not null,
    headers bytea,
    enqueued_at timestamptz not null,
    died_at timestamptz not null default clock_timestamp(),
    code text not null,
    reason text not null
);
call tenant_table('outbox_dead', 'tenant_id', 'all');
grant select, insert, delete on outbox_dead to hr_system;

-- Inbox: which messages a consumer has already acted on, written in the transaction of the effect.
create table inbox (
    tenant_id text not null check (tenant_id <> ''),
    consumer text not null check (consumer <> ''),
    message_id text not null check (message_id <> ''),
    received_at timestamptz not null default now(),
    primary key (consumer, tenant_id, message_id)
);
create index inbox_received on inbox using brin (received_at);
call tenant_table('inbox', 'tenant_id', 'all');
grant insert on inbox to hr_app;
grant select, insert, delete on inbox to hr_system;

-- Answers to requests that carried an `Idempotency-Key`, written in the transaction of their effect.
create table idempotency_key (
    tenant_id text not null check (tenant_id <> ''),
    scope text not null check (scope <> ''),
    key_sha256 bytea not null check (length(key_sha256) = 32),
    request_sha256 bytea not null check (length(request_sha256) = 32),
    status smallint not null check (status between 200 and 499),
    body bytea not null,
    created_at timestamptz not null default now(),
    primary key (tenant_id, scope, key_sha256)
);
comment on column idempotency_key.scope is 'Caller and route: one key of two callers or routes is two keys';
create index idempotency_key_created on idempotency_key using brin (created_at);
call tenant_table('idempotency_key', 'tenant_id', 'all');
grant select, insert, delete on idempotency_key to hr_app;
grant select, delete on idempotency_key to hr_system;
