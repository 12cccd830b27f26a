-- Events of a run are gone after 7 days and its checkpoints at its end: what `usage` says of it stays in its row.
alter table run add column cached_tokens bigint not null default 0;
alter table run add column reasoning_tokens bigint not null default 0;
comment on column run.cached_tokens is 'Part of input_tokens';
comment on column run.reasoning_tokens is 'Part of output_tokens';
