-- Generations of the usage tables in the lake. The first has no row; each other one was made from the rows
-- of one before it, beside it, and counts from its promotion on.
create table usage_generation (
    generation integer primary key check (generation > 1),
    made_from integer not null check (made_from > 0 and made_from < generation),
    first_slice bigint not null check (first_slice > 0),
    last_slice bigint check (last_slice >= first_slice),
    code_version text not null,
    price_revision bigint not null,
    through_slice bigint not null default 0,
    report jsonb not null default '{}',
    begun_by text not null,
    begun_at timestamptz not null default now(),
    decided_by text,
    discarded_at timestamptz
);
comment on column usage_generation.last_slice is 'Slices from first to last were read anew; null for all from the first on';
comment on column usage_generation.through_slice is 'What the report compares: both generations up to this slice';
comment on column usage_generation.decided_by is 'Who promoted or discarded it';
grant select, insert, update on usage_generation to hr_system;

-- The one row by which a generation is promoted. The greatest one counts.
create table usage_promotion (
    generation integer primary key references usage_generation (generation),
    promoted_at timestamptz not null default now()
);
grant select, insert on usage_promotion to hr_system;
