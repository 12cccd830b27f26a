-- The generation of the usage tables that a document or an item of a price fix was rated from. Before replays there
-- was one.
alter table invoice
    add column generation integer not null default 1 check (generation > 0),
    drop constraint invoice_posted_once,
    -- Running an adjustment twice posts it once, whoever runs it and whatever dies when.
    add constraint invoice_posted_once
        unique (tenant_id, period_start, period_end, reason, generation, slice, price_revision);
alter table invoice alter column generation drop default;
alter table price_fix_item add column generation integer not null default 1;
alter table price_fix_item alter column generation drop default;
