-- A tenant's own providers of language models. The key is a ciphertext bound to its row: it is written,
-- used and never shown again.
create table provider (
    tenant_id text not null references organisation (id) check (tenant_id <> ''),
    id text not null check (id <> ''),
    name text not null check (name ~ '^[a-z0-9][a-z0-9_-]{0,62}$'),
    kind text not null check (kind in ('openai', 'anthropic')),
    base_url text not null check (base_url <> ''),
    api_key bytea not null,
    models text[] not null,
    prices jsonb not null default '{}',
    created_by text not null,
    created_at timestamptz not null default now(),
    updated_at timestamptz not null default now(),
    primary key (tenant_id, id),
    unique (tenant_id, name)
);
call tenant_table('provider', 'tenant_id', 'all');
grant select, insert, update, delete on provider to hr_app;
-- A new field key is put under every ciphertext by the platform, across tenants.
grant select, update on provider to hr_system;
