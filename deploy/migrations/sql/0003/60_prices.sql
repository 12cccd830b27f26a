-- How a price makes an amount of a quantity: core/prices/models.py. `unit_price` is the first tier's where
-- there are tiers; `included` units of each service period are free, which costs `minimum` at least.
-- Numbers in `tiers` are decimal text: [{"up_to": "1000", "unit_price": "0.4", "fee": "0"}, …].
alter table price
    add column model text not null default 'flat' check (model <> ''),
    add column tiers jsonb not null default '[]' check (jsonb_typeof(tiers) = 'array'),
    add column included numeric(38, 9) not null default 0 check (included >= 0),
    add column minimum numeric(38, 12) not null default 0 check (minimum >= 0),
    -- A minimum for everybody would charge organisations that never used the meter.
    add check (minimum = 0 or tenant_id <> '*');
