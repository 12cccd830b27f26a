-- What the gate before publication said last of each generation's slices. Only it has read the lake: who issues
-- invoices asks here, in the transaction of the document. It names no tenant; the check in Dagster does.
create table usage_gate (
    generation integer primary key check (generation > 0),
    first_slice bigint not null,
    last_slice bigint not null check (last_slice >= first_slice),
    problems bigint not null check (problems >= 0),
    judged_at timestamptz not null default now()
);
comment on column usage_gate.problems is 'None where what it had held up passed in the end';
grant select on usage_gate to hr_app;
grant select, insert, update on usage_gate to hr_system;
