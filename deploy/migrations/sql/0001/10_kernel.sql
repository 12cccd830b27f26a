-- Row-level security, written once. `check (tenant_id <> '')` in each table and nullif() here: a
-- pooled connection that once had a tenant gives '' afterwards, which must match nothing.
create function current_tenant() returns text language sql stable
    as $$ select nullif(current_setting('app.tenant', true), '') $$;

-- Enable and force row-level security on a table whose rows belong to a tenant.
-- hr_app sees its tenant's rows; hr_system sees what `system_rights` names ('select', 'all' or '').
create procedure tenant_table(tbl regclass, tenant_column name, system_rights text)
language plpgsql as $$
begin
    execute format('alter table %s enable row level security', tbl);
    execute format('alter table %s force row level security', tbl);
    execute format(
        'create policy tenant on %s for all to hr_app using (%I = current_tenant()) with check (%I = current_tenant())',
        tbl, tenant_column, tenant_column);
    if system_rights = 'all' then
        execute format('create policy system on %s for all to hr_system using (true) with check (true)', tbl);
    elsif system_rights = 'select' then
        execute format('create policy system on %s for select to hr_system using (true)', tbl);
    elsif system_rights <> '' then
        raise exception 'system_rights must be all, select or empty';
    end if;
end $$;
