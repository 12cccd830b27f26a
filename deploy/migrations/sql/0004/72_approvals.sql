-- A run that waits for a person: its row has the status `waiting` and no lease, the question is an `approval`.
alter table run drop constraint run_status_check;
alter table run add constraint run_status_check
    check (status in ('queued', 'running', 'waiting', 'completed', 'failed', 'cancelled'));
alter table run add column waiting_since timestamptz;
alter table run add column waited interval not null default '0';
comment on column run.waited is 'Time it stood still for people; its limit of seconds does not count it';
-- A later turn of a conversation waits for the answers of the earlier ones, those that wait too.
drop index run_open_turn;
create index run_open_turn on run (tenant_id, conversation_id, turn)
    where status in ('queued', 'running', 'waiting');

create table approval (
    tenant_id text not null check (tenant_id <> ''),
    run_id text not null,
    call text not null check (call <> ''),
    round integer not null check (round > 0),
    tool text not null,
    arguments text not null,
    reason text not null check (reason in ('unsafe', 'policy', 'interrupted')),
    requested_at timestamptz not null default clock_timestamp(),
    expires_at timestamptz not null,
    decision text check (decision in ('approve', 'reject', 'expired', 'cancelled')),
    decided_by text not null default '',
    note text not null default '',
    decided_at timestamptz,
    check ((decision is null) = (decided_at is null)),
    primary key (tenant_id, run_id, call, round),
    foreign key (tenant_id, run_id) references run (tenant_id, id) on delete cascade
);
comment on column approval.round is
    '1 for the first question about a call; another one where it began and nobody saw its end';
create index approval_open on approval (expires_at) where decision is null;
call tenant_table('approval', 'tenant_id', 'all');
grant select, update on approval to hr_app;
grant select, insert, update, delete on approval to hr_system;
