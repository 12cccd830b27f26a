-- Which event takes the place of which. A void of an event is counted once however often it comes; its successor
-- must be one as well, or both of two successors count.
create table usage_replacement (
    tenant_id text not null check (tenant_id <> ''),
    source text not null check (source <> ''),
    event_id text not null check (event_id <> ''),
    by_source text not null check (by_source <> ''),
    by_id text not null check (by_id <> ''),
    by_subject text not null,
    created_at timestamptz not null default now(),
    primary key (tenant_id, source, event_id),
    check ((source, event_id) <> (by_source, by_id))
);
create unique index usage_replacement_by on usage_replacement (tenant_id, by_source, by_id);
comment on column usage_replacement.by_subject is 'A void of the successor goes under its key, so that it lands behind it';

-- Versions of conflicts that were accepted before: each named what it took the place of. The owner is bound by
-- row-level security as well, and would see none of them.
alter table usage_quarantine no force row level security;
insert into usage_replacement (tenant_id, source, event_id, by_source, by_id, by_subject, created_at)
select tenant_id, source, sent->>'voids', source, sent->>'event', coalesce(version->>'subject', ''), decided_at
from usage_quarantine
where state = 'accepted' and code = 'conflict' and sent ? 'voids' and sent->>'voids' <> sent->>'event'
order by decided_at
on conflict do nothing;
alter table usage_quarantine force row level security;

call tenant_table('usage_replacement', 'tenant_id', 'all');
grant select, insert on usage_replacement to hr_app, hr_system;
