-- Issued invoices and adjustments. `document` is what was issued (canonical JSON); every other column is an
-- index of it. Nobody changes or removes a row: no role may, and a trigger refuses who could.
create table invoice_sequence (
    tenant_id text primary key references organisation (id) check (tenant_id <> ''),
    last bigint not null check (last >= 0)
);
comment on column invoice_sequence.last is 'Number given out last; taken at the end of the transaction that issues';
call tenant_table('invoice_sequence', 'tenant_id', 'all');
grant select, insert, update on invoice_sequence to hr_app, hr_system;

create table invoice (
    tenant_id text not null references organisation (id) check (tenant_id <> ''),
    number bigint not null check (number > 0),
    id text not null unique check (id <> ''),
    reason text not null check (reason in ('service_period', 'late_usage', 'price_fix')),
    price_fix text,
    period_start timestamptz not null,
    period_end timestamptz not null,
    slice bigint not null check (slice >= 0),
    lake_version bigint not null,
    price_revision bigint not null,
    code_version text not null,
    currency text check (currency ~ '^[A-Z]{3}$'),
    total numeric not null,
    document bytea not null,
    sha256 text not null,
    issued_by text not null,
    issued_at timestamptz not null,
    primary key (tenant_id, number),
    -- Running an adjustment twice posts it once, whoever runs it and whatever dies when.
    constraint invoice_posted_once unique (tenant_id, period_start, period_end, reason, slice, price_revision),
    check (period_end > period_start),
    check (extract(epoch from period_start) % 3600 = 0 and extract(epoch from period_end) % 3600 = 0),
    check ((reason = 'price_fix') = (price_fix is not null)),
    check (sha256 = encode(sha256(document), 'hex'))
);
-- A service period is closed once.
create unique index invoice_of_period on invoice (tenant_id, period_start, period_end) where reason = 'service_period';
call tenant_table('invoice', 'tenant_id', 'all');
grant select, insert on invoice to hr_app, hr_system;

create function issued_never_changes() returns trigger language plpgsql as $$
begin
    raise exception 'an issued invoice never changes; post an adjustment' using errcode = 'restrict_violation';
end $$;
create trigger issued_never_changes before update or delete on invoice
    for each row execute function issued_never_changes();
create trigger issued_never_truncated before truncate on invoice
    for each statement execute function issued_never_changes();

-- Which documents lie in the archive (bucket `invoices`) too.
create table invoice_copy (
    tenant_id text not null check (tenant_id <> ''),
    number bigint not null,
    copied_at timestamptz not null default now(),
    primary key (tenant_id, number),
    foreign key (tenant_id, number) references invoice (tenant_id, number)
);
call tenant_table('invoice_copy', 'tenant_id', 'all');
grant select on invoice_copy to hr_app;
grant select, insert on invoice_copy to hr_system;
