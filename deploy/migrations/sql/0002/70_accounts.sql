-- Accounts: registration, reset, sessions with rotating refresh tokens, second factor, invitations.
-- Tokens that are sent or shown lie here as SHA-256 only; each holds 256 random bits.

-- Rows that belong to a person in whatever organisation: hr_app sees those of the person it has named in
-- its transaction. '' as with the tenant: a pooled connection must match nothing.
create function current_person() returns text language sql stable
    as $$ select nullif(current_setting('app.person', true), '') $$;
create procedure person_table(tbl regclass)
language plpgsql as $$
begin
    execute format('alter table %s enable row level security', tbl);
    execute format('alter table %s force row level security', tbl);
    execute format(
        'create policy self on %s for all to hr_app using (person_id = current_person()) with check (person_id = current_person())',
        tbl);
    execute format('create policy system on %s for all to hr_system using (true) with check (true)', tbl);
    execute format('grant select, insert, update, delete on %s to hr_app, hr_system', tbl);
end $$;

alter table person add column name text not null default '';
create policy self on person for all to hr_app using (id = current_person()) with check (id = current_person());
-- By column: no statement of a service makes an owner of the platform.
grant insert (id, email, password_hash, name) on person to hr_app;
grant update (password_hash, password_changed_at, name) on person to hr_app;

-- Nobody is a person before the mailbox is proven: until then the registration waits here.
create table registration (
    token_sha256 bytea primary key check (length(token_sha256) = 32),
    email text not null check (email = lower(email)),
    password_hash text not null,
    name text not null,
    organisation_name text not null,
    created_at timestamptz not null default now(),
    expires_at timestamptz not null
);
create table password_reset (
    token_sha256 bytea primary key check (length(token_sha256) = 32),
    person_id text references person (id) on delete cascade,
    created_at timestamptz not null default now(),
    expires_at timestamptz not null
);
comment on column password_reset.person_id is 'Null where nobody has the address: both cases do the same work';
create index password_reset_person on password_reset (person_id);

-- Attempts of a minute or an hour as a leaking bucket; the name is a keyed hash, nobody can read it back.
create table attempt_bucket (
    name bytea primary key check (length(name) = 32),
    level double precision not null check (level >= 0),
    at timestamptz not null default clock_timestamp()
);
do $$
declare t text;
begin
    foreach t in array array['registration', 'password_reset', 'attempt_bucket'] loop
        execute format('alter table %I enable row level security', t);
        execute format('alter table %I force row level security', t);
        execute format('create policy system on %I for all to hr_system using (true) with check (true)', t);
        execute format('grant select, insert, update, delete on %I to hr_system', t);
    end loop;
    -- Write only: who can add a registration or reset cannot read the others'.
    foreach t in array array['registration', 'password_reset'] loop
        execute format('create policy add on %I for insert to hr_app with check (true)', t);
        execute format('grant insert on %I to hr_app', t);
    end loop;
end $$;
create policy counted on attempt_bucket for all to hr_app using (true) with check (true);
grant select, insert, update, delete on attempt_bucket to hr_app;

-- One login and what came of it. `generation` grows when the person's role changes: access tokens carry it.
create table login_session (
    tenant_id text not null references organisation (id) check (tenant_id <> ''),
    id text not null check (id <> ''),
    person_id text not null references person (id) on delete cascade,
    generation integer not null default 0,
    second_factor boolean not null,
    user_agent text not null,
    created_at timestamptz not null default now(),
    used_at timestamptz not null default now(),
    expires_at timestamptz not null,
    ended_at timestamptz,
    end_reason text check (end_reason in ('logout', 'logout_all', 'revoked', 'reused', 'password', 'member')),
    primary key (tenant_id, id),
    unique (id),
    check ((ended_at is null) = (end_reason is null))
);
create index login_session_person on login_session (person_id, id);
call tenant_table('login_session', 'tenant_id', 'all');
create policy self on login_session for all to hr_app
    using (person_id = current_person()) with check (person_id = current_person());
grant select, insert, update on login_session to hr_app;
grant select, insert, update, delete on login_session to hr_system;

-- The family of a session: the one that was not used is good, a used one that comes again ends them all.
create table refresh_token (
    token_sha256 bytea primary key check (length(token_sha256) = 32),
    person_id text not null references person (id) on delete cascade,
    session_id text not null references login_session (id) on delete cascade,
    issued_at timestamptz not null default now(),
    used_at timestamptz
);
create index refresh_token_session on refresh_token (session_id);
call person_table('refresh_token');

-- What has logged in before: a browser or program that kept its device token, and the networks it came from.
create table login_device (
    person_id text not null references person (id) on delete cascade,
    id text not null check (id <> ''),
    token_sha256 bytea not null check (length(token_sha256) = 32),
    created_at timestamptz not null default now(),
    used_at timestamptz not null default now(),
    primary key (person_id, id),
    unique (person_id, token_sha256)
);
call person_table('login_device');
create table login_place (
    person_id text not null references person (id) on delete cascade,
    place bytea not null check (length(place) = 32),
    used_at timestamptz not null default now(),
    primary key (person_id, place)
);
comment on column login_place.place is 'Keyed hash of person and network';
call person_table('login_place');

create table person_totp (
    person_id text primary key references person (id) on delete cascade,
    secret bytea not null,
    created_at timestamptz not null default now(),
    confirmed_at timestamptz,
    last_step bigint not null default 0
);
comment on column person_totp.secret is 'Ciphertext of core.security.fields';
comment on column person_totp.last_step is 'Time step of the code that was used last: each code works once';
call person_table('person_totp');
create table recovery_code (
    person_id text not null references person (id) on delete cascade,
    code_sha256 bytea not null check (length(code_sha256) = 32),
    used_at timestamptz,
    primary key (person_id, code_sha256)
);
call person_table('recovery_code');

create table invitation (
    tenant_id text not null references organisation (id) check (tenant_id <> ''),
    id text not null check (id <> ''),
    email text not null check (email = lower(email)),
    role text not null check (role in ('owner', 'admin', 'developer', 'viewer')),
    token_sha256 bytea not null unique check (length(token_sha256) = 32),
    invited_by text not null,
    created_at timestamptz not null default now(),
    expires_at timestamptz not null,
    accepted_at timestamptz,
    accepted_by text,
    revoked_at timestamptz,
    primary key (tenant_id, id)
);
call tenant_table('invitation', 'tenant_id', 'all');
grant select, insert, update on invitation to hr_app;
grant select, insert, update, delete on invitation to hr_system;

-- Whoever holds a token may learn what it stands for: each takes the hash of one and returns the minimum.
create function registration_lookup(wanted bytea)
returns table (email text, password_hash text, name text, organisation_name text)
language sql stable security definer set search_path = public, pg_temp
as $$
    select r.email, r.password_hash, r.name, r.organisation_name from registration r
    where r.token_sha256 = wanted and r.expires_at > now()
$$;
-- With every other registration of that address: it is proven now.
create function registration_take(wanted bytea) returns boolean
language sql volatile security definer set search_path = public, pg_temp
as $$
    with taken as (delete from registration where token_sha256 = wanted and expires_at > now() returning email),
         others as (delete from registration where email in (select email from taken) and token_sha256 <> wanted)
    select exists (select 1 from taken)
$$;
create function password_reset_take(wanted bytea) returns text
language sql volatile security definer set search_path = public, pg_temp
as $$
    with taken as (delete from password_reset where token_sha256 = wanted and expires_at > now() returning person_id),
         others as (delete from password_reset where person_id in (select person_id from taken) and token_sha256 <> wanted)
    select person_id from taken
$$;
create function refresh_lookup(wanted bytea)
returns table (person_id text, session_id text, tenant_id text)
language sql stable security definer set search_path = public, pg_temp
as $$
    select t.person_id, t.session_id, s.tenant_id
    from refresh_token t join login_session s on s.id = t.session_id where t.token_sha256 = wanted
$$;
create function session_is_active(wanted text, with_generation integer) returns boolean
language sql stable security definer set search_path = public, pg_temp
as $$
    select exists (select 1 from login_session s where s.id = wanted and s.generation = with_generation
                   and s.ended_at is null and s.expires_at > now())
$$;
create function invitation_lookup(wanted bytea)
returns table (tenant_id text, id text, email text, role text)
language sql stable security definer set search_path = public, pg_temp
as $$
    select i.tenant_id, i.id, i.email, i.role from invitation i
    where i.token_sha256 = wanted and i.accepted_at is null and i.revoked_at is null and i.expires_at > now()
$$;
create function person_lookup(wanted text)
returns table (person_id text, email text, name text, password_hash text, platform_owner boolean)
language sql stable security definer set search_path = public, pg_temp
as $$ select p.id, p.email, p.name, p.password_hash, p.platform_owner from person p where p.id = wanted $$;
-- What nobody needs any more, of everybody; returns how many rows went.
create function forget_old_accounts() returns bigint
language sql volatile security definer set search_path = public, pg_temp
as $$
    with a as (delete from registration where expires_at < now() returning 1),
         b as (delete from password_reset where expires_at < now() returning 1),
         c as (delete from attempt_bucket where at < now() - interval '2 days' returning 1),
         d as (delete from login_device where used_at < now() - interval '180 days' returning 1),
         e as (delete from login_place where used_at < now() - interval '180 days' returning 1),
         f as (delete from login_session
               where least(coalesce(ended_at, expires_at), expires_at) < now() - interval '30 days' returning 1),
         g as (delete from invitation
               where coalesce(accepted_at, revoked_at, expires_at) < now() - interval '30 days' returning 1)
    select (select count(*) from a) + (select count(*) from b) + (select count(*) from c)
         + (select count(*) from d) + (select count(*) from e) + (select count(*) from f) + (select count(*) from g)
$$;
do $$
declare f regprocedure;
begin
    foreach f in array array[
        'registration_lookup(bytea)', 'registration_take(bytea)', 'password_reset_take(bytea)',
        'refresh_lookup(bytea)', 'session_is_active(text, integer)', 'invitation_lookup(bytea)',
        'person_lookup(text)', 'forget_old_accounts()']::regprocedure[] loop
        execute format('revoke all on function %s from public', f);
        execute format('grant execute on function %s to hr_app, hr_system', f);
        execute format('alter function %s owner to hr_system', f);
    end loop;
end $$;
