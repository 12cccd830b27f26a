-- Plans, organisations (a tenant is an organisation), people, memberships, API keys.
create table plan (
    code text primary key check (code <> ''),
    name text not null,
    audit_retention_days integer not null check (audit_retention_days > 0),
    usage_retention_days integer not null check (usage_retention_days > 0),
    requests_per_minute integer not null check (requests_per_minute > 0)
);
grant select on plan to hr_app, hr_system;
insert into plan values
    ('free', 'Free', 90, 400, 600),
    ('team', 'Team', 365, 1100, 6000),
    ('enterprise', 'Enterprise', 2555, 2555, 60000);

create table organisation (
    id text primary key check (id <> ''),
    slug text not null unique check (slug ~ '^[a-z0-9](?:[a-z0-9-]{0,61}[a-z0-9])?$'),
    name text not null,
    plan text not null references plan (code),
    created_at timestamptz not null default now()
);
call tenant_table('organisation', 'id', 'all');
-- An organisation is made inside itself: the policy lets a row in only while its own id is the tenant.
grant select, insert, update on organisation to hr_app;
grant select, insert, update on organisation to hr_system;

-- A person may belong to several organisations, so the row has no tenant of its own: hr_app sees the
-- people of its organisation through their memberships.
create table person (
    id text primary key check (id <> ''),
    email text not null unique check (email = lower(email)),
    password_hash text not null,
    platform_owner boolean not null default false,
    created_at timestamptz not null default now(),
    password_changed_at timestamptz not null default now()
);
create table membership (
    tenant_id text not null references organisation (id) check (tenant_id <> ''),
    person_id text not null references person (id),
    role text not null check (role in ('owner', 'admin', 'developer', 'viewer')),
    created_at timestamptz not null default now(),
    primary key (tenant_id, person_id)
);
create index membership_person on membership (person_id);
call tenant_table('membership', 'tenant_id', 'all');
grant select, insert, update, delete on membership to hr_app, hr_system;

alter table person enable row level security;
alter table person force row level security;
create policy member on person for select to hr_app
    using (exists (select 1 from membership m where m.person_id = person.id and m.tenant_id = current_tenant()));
create policy system on person for all to hr_system using (true) with check (true);
grant select on person to hr_app;
grant select, insert, update, delete on person to hr_system;

-- sk_live_<id>_<secret>: public_id finds the row, the SHA-256 of the whole key proves it.
create table api_key (
    tenant_id text not null references organisation (id) check (tenant_id <> ''),
    id text not null check (id <> ''),
    public_id text not null unique check (public_id <> ''),
    name text not null check (name <> ''),
    key_sha256 bytea not null check (length(key_sha256) = 32),
    scopes text[] not null check (cardinality(scopes) > 0),
    created_by text not null,
    created_at timestamptz not null default now(),
    expires_at timestamptz,
    revoked_at timestamptz,
    rotated_to text,
    primary key (tenant_id, id),
    -- Foreign keys ignore row-level security; with the tenant in them they cannot cross it.
    foreign key (tenant_id, rotated_to) references api_key (tenant_id, id)
);
call tenant_table('api_key', 'tenant_id', 'select');
grant select, insert, update on api_key to hr_app;
grant select on api_key to hr_system;

-- What must look across tenants before it knows one returns the minimum and runs as hr_system.
-- pg_temp comes last in each search path: unnamed it would be searched first, and a caller's temporary
-- table could stand in for ours.
create function api_key_lookup(wanted text)
returns table (tenant_id text, id text, key_sha256 bytea, scopes text[], expires_at timestamptz,
               revoked_at timestamptz, plan text, requests_per_minute integer)
language sql stable security definer set search_path = public, pg_temp
as $$
    select k.tenant_id, k.id, k.key_sha256, k.scopes, k.expires_at, k.revoked_at, o.plan, p.requests_per_minute
    from api_key k join organisation o on o.id = k.tenant_id join plan p on p.code = o.plan
    where k.public_id = wanted
$$;
create function login_lookup(wanted text)
returns table (person_id text, password_hash text, platform_owner boolean)
language sql stable security definer set search_path = public, pg_temp
as $$ select p.id, p.password_hash, p.platform_owner from person p where p.email = lower(wanted) $$;
create function memberships_of(wanted text)
returns table (tenant_id text, slug text, role text, plan text, requests_per_minute integer)
language sql stable security definer set search_path = public, pg_temp
as $$
    select m.tenant_id, o.slug, m.role, o.plan, p.requests_per_minute
    from membership m join organisation o on o.id = m.tenant_id join plan p on p.code = o.plan
    where m.person_id = wanted order by m.created_at, m.tenant_id
$$;
-- Where the owner of the platform goes, by slug or id.
create function organisation_lookup(wanted text)
returns table (tenant_id text, slug text, plan text, requests_per_minute integer)
language sql stable security definer set search_path = public, pg_temp
as $$
    select o.id, o.slug, o.plan, p.requests_per_minute
    from organisation o join plan p on p.code = o.plan where wanted in (o.id, o.slug)
$$;
-- One page of the organisations of a person, or of all (null), by age; the bounds are ids, outside the page.
create function organisation_page(of_person text, with_slug text, above text, below text,
                                  newest_first boolean, at_most integer)
returns table (id text, slug text, name text, plan text, requests_per_minute integer,
               usage_retention_days integer, audit_retention_days integer, created_at timestamptz)
language sql stable security definer set search_path = public, pg_temp
as $$
    select o.id, o.slug, o.name, o.plan, p.requests_per_minute, p.usage_retention_days, p.audit_retention_days,
           o.created_at
    from organisation o join plan p on p.code = o.plan
    where (above is null or o.id > above) and (below is null or o.id < below)
      and (with_slug is null or o.slug = with_slug)
      and (of_person is null
           or exists (select 1 from membership m where m.tenant_id = o.id and m.person_id = of_person))
    order by case when newest_first then o.id end desc, o.id limit at_most
$$;
do $$
declare f regprocedure;
begin
    foreach f in array array[
        'api_key_lookup(text)', 'login_lookup(text)', 'memberships_of(text)', 'organisation_lookup(text)',
        'organisation_page(text, text, text, text, boolean, integer)']::regprocedure[] loop
        execute format('revoke all on function %s from public', f);
        execute format('grant execute on function %s to hr_app, hr_system', f);
        -- Owned by hr_owner, FORCE row level security would return nothing.
        execute format('alter function %s owner to hr_system', f);
    end loop;
end $$;
