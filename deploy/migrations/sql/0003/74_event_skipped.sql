-- Records of the event log that a consumer left out for good: which, and why. Their content stays in the
-- log as long as its topic keeps it.
create table event_skipped (
    consumer text not null check (consumer <> ''),
    topic text not null check (topic <> ''),
    partition integer not null,
    log_offset bigint not null,
    appended_at timestamptz not null,
    code text not null check (code in ('unreadable', 'refused')),
    reason text not null,
    skipped_at timestamptz not null default now(),
    primary key (consumer, topic, partition, log_offset, appended_at)
);
create index event_skipped_at on event_skipped (skipped_at);
-- Plumbing, of no tenant: role `app` has no right here.
alter table event_skipped enable row level security;
alter table event_skipped force row level security;
create policy system on event_skipped for all to hr_system using (true) with check (true);
grant select, insert, delete on event_skipped to hr_system;
