-- Agents and their versions; conversations, messages; runs with lease and fencing epoch, checkpoints.
create table agent (
    tenant_id text not null references organisation (id) check (tenant_id <> ''),
    id text not null check (id <> ''),
    slug text not null check (slug ~ '^[a-z0-9](?:[a-z0-9-]{0,61}[a-z0-9])?$'),
    name text not null check (name <> ''),
    description text not null default '',
    revision integer not null default 1,
    latest_version integer not null default 1,
    published_version integer,
    created_by text not null,
    created_at timestamptz not null default now(),
    updated_at timestamptz not null default now(),
    primary key (tenant_id, id),
    unique (tenant_id, slug)
);
comment on column agent.revision is 'Counts every change; the ETag';
call tenant_table('agent', 'tenant_id', 'all');
grant select, insert, update, delete on agent to hr_app, hr_system;

create table agent_version (
    tenant_id text not null check (tenant_id <> ''),
    agent_id text not null,
    version integer not null check (version > 0),
    spec jsonb not null,
    created_by text not null,
    created_at timestamptz not null default now(),
    primary key (tenant_id, agent_id, version),
    foreign key (tenant_id, agent_id) references agent (tenant_id, id) on delete cascade
);
call tenant_table('agent_version', 'tenant_id', 'all');
grant select, insert on agent_version to hr_app, hr_system;

-- Its agent may be gone: what was said stays. `turns` counts its runs; the row is locked to number one.
create table conversation (
    tenant_id text not null references organisation (id) check (tenant_id <> ''),
    id text not null check (id <> ''),
    agent_id text not null default '',
    user_id text not null check (user_id <> ''),
    title text not null default '',
    opened_by text,
    turns integer not null default 0,
    metadata jsonb not null default '{}',
    created_at timestamptz not null default now(),
    updated_at timestamptz not null default now(),
    primary key (tenant_id, id)
);
comment on column conversation.opened_by is
    'client_msg_id of the message that opened it: the same message again finds the same conversation';
create unique index conversation_opened on conversation (tenant_id, user_id, agent_id, opened_by)
    where opened_by is not null;
create index conversation_of_user on conversation (tenant_id, user_id, id);
call tenant_table('conversation', 'tenant_id', 'all');
grant select, insert, update, delete on conversation to hr_app, hr_system;

-- A run's row is the truth about it. Who holds the lease writes, and only under its own epoch.
create table run (
    tenant_id text not null check (tenant_id <> ''),
    id text not null unique check (id <> ''),
    sequence bigint generated always as identity,
    conversation_id text not null,
    turn integer not null,
    user_id text not null,
    agent_id text not null,
    agent_version integer not null,
    spec jsonb not null,
    metadata jsonb not null default '{}',
    traceparent text not null default '',
    status text not null default 'queued' check (status in ('queued', 'running', 'completed', 'failed', 'cancelled')),
    epoch integer not null default 0,
    owner text not null default '',
    lease_until timestamptz,
    stalls integer not null default 0,
    last_seq integer not null default 0,
    safe_seq integer not null default 0,
    steps integer not null default 0,
    cancel_by text,
    created_at timestamptz not null default clock_timestamp(),
    started_at timestamptz,
    ended_at timestamptz,
    message_id text not null default '',
    input_tokens bigint not null default 0,
    output_tokens bigint not null default 0,
    requests integer not null default 0,
    tool_calls integer not null default 0,
    error_code text not null default '',
    error_message text not null default '',
    retryable boolean not null default false,
    provider text not null default '',
    event_partition integer,
    first_offset bigint,
    last_offset bigint,
    primary key (tenant_id, id),
    unique (tenant_id, conversation_id, turn),
    foreign key (tenant_id, conversation_id) references conversation (tenant_id, id) on delete cascade
);
comment on column run.safe_seq is 'Last event before the latest checkpoint: a takeover discards what came later';
comment on column run.stalls is 'Takeovers since the latest checkpoint';
create index run_open on run (sequence) where status in ('queued', 'running');
create index run_open_turn on run (tenant_id, conversation_id, turn) where status in ('queued', 'running');
-- Rows of open runs change with every tick; none of the indexed columns does.
alter table run set (fillfactor = 70);
call tenant_table('run', 'tenant_id', 'all');
grant select, insert, update, delete on run to hr_app, hr_system;

-- `turn` and `place` order the messages: 0 is what was asked, then the answers of that turn's run.
create table message (
    tenant_id text not null check (tenant_id <> ''),
    id text not null check (id <> ''),
    conversation_id text not null,
    run_id text,
    turn integer not null,
    place integer not null,
    role text not null check (role in ('user', 'assistant', 'system')),
    text text not null,
    citations jsonb not null default '[]',
    client_msg_id text,
    created_at timestamptz not null default clock_timestamp(),
    primary key (tenant_id, id),
    unique (tenant_id, conversation_id, turn, place),
    foreign key (tenant_id, conversation_id) references conversation (tenant_id, id) on delete cascade
);
create unique index message_sent_once on message (tenant_id, conversation_id, client_msg_id)
    where client_msg_id is not null;
call tenant_table('message', 'tenant_id', 'all');
grant select, insert, update, delete on message to hr_app, hr_system;

create table checkpoint (
    tenant_id text not null check (tenant_id <> ''),
    run_id text not null,
    step integer not null check (step > 0),
    kind text not null check (kind in ('model', 'tool')),
    payload bytea not null,
    epoch integer not null,
    created_at timestamptz not null default clock_timestamp(),
    primary key (tenant_id, run_id, step),
    foreign key (tenant_id, run_id) references run (tenant_id, id) on delete cascade
);
call tenant_table('checkpoint', 'tenant_id', 'all');
grant select, insert, delete on checkpoint to hr_app, hr_system;
