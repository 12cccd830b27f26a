-- Knowledge bases, documents and their versions. The rows are the truth about what is stored, how far
-- it is on its way and which version is visible; vectors and derived text can be rebuilt from them.
create table knowledge_base (
    tenant_id text not null references organisation (id) check (tenant_id <> ''),
    id text not null check (id <> ''),
    slug text not null check (slug ~ '^[a-z0-9](?:[a-z0-9-]{0,61}[a-z0-9])?$'),
    name text not null check (name <> ''),
    created_by text not null,
    created_at timestamptz not null default now(),
    deleted_at timestamptz,
    primary key (tenant_id, id)
);
create unique index knowledge_base_slug on knowledge_base (tenant_id, slug) where deleted_at is null;
call tenant_table('knowledge_base', 'tenant_id', 'all');
grant select, insert, update, delete on knowledge_base to hr_app;
grant select, insert, update, delete on knowledge_base to hr_system;

-- A document is visible exactly while live_version names one of its versions: a new version is written
-- beside the old one and the number moves once. Deleting sets it to null before anything else goes.
create table document (
    tenant_id text not null references organisation (id) check (tenant_id <> ''),
    id text not null check (id <> ''),
    knowledge_base_id text,
    kind text not null default 'document' check (kind in ('document', 'memory')),
    user_id text not null default '',
    name text not null,
    live_version bigint,
    last_version bigint not null default 0 check (last_version >= 0),
    created_by text not null,
    created_at timestamptz not null default now(),
    deleted_at timestamptz,
    erased_at timestamptz,
    primary key (tenant_id, id),
    foreign key (tenant_id, knowledge_base_id) references knowledge_base (tenant_id, id),
    check (live_version is null or live_version between 1 and last_version),
    check (deleted_at is null or live_version is null),
    check (erased_at is null or deleted_at is not null),
    check ((kind = 'memory') = (knowledge_base_id is null)),
    check ((kind = 'memory') = (user_id <> ''))
);
comment on column document.user_id is 'Whose memory it is; empty for documents, which all of the organisation read';
comment on column document.erased_at is 'When vectors, objects and derived data were counted and none was left';
create index document_of_base on document (tenant_id, knowledge_base_id, id) where deleted_at is null;
create index document_of_user on document (tenant_id, user_id, id) where deleted_at is null and kind = 'memory';
create index document_to_erase on document (deleted_at) where deleted_at is not null and erased_at is null;
call tenant_table('document', 'tenant_id', 'all');
grant select, insert, update, delete on document to hr_app;
grant select, insert, update, delete on document to hr_system;

create table document_version (
    tenant_id text not null check (tenant_id <> ''),
    document_id text not null,
    version bigint not null check (version > 0),
    media_type text not null,
    size bigint check (size >= 0),
    sha256 text check (sha256 ~ '^[0-9a-f]{64}$'),
    object_key text not null check (object_key <> ''),
    object_version text,
    state text not null check (state in ('uploading', 'queued', 'parsing', 'chunking', 'embedding', 'indexing',
                                         'indexed', 'needs_ocr', 'failed', 'cancelled')),
    stage_at timestamptz not null default now(),
    attempt integer not null default 0 check (attempt >= 0),
    reason text not null default '',
    next_attempt_at timestamptz,
    pages integer,
    characters bigint,
    chunks integer,
    text_key text,
    created_by text not null,
    created_at timestamptz not null default now(),
    primary key (tenant_id, document_id, version),
    foreign key (tenant_id, document_id) references document (tenant_id, id) on delete cascade
);
comment on column document_version.object_key is 'Key in bucket knowledge: tenant/document/version';
comment on column document_version.text_key is 'Key of the extracted text (UTF-8) in bucket derived, set when it is parsed';
comment on column document_version.reason is 'Why it is in this state, for people; empty where all is well';
-- The work list: what waits, and what was taken and may have to be taken again.
create index document_version_work on document_version (state, next_attempt_at)
    where state in ('queued', 'parsing', 'chunking', 'embedding', 'indexing');
create index document_version_uploading on document_version (created_at) where state = 'uploading';
create index document_version_content on document_version (tenant_id, sha256);
call tenant_table('document_version', 'tenant_id', 'all');
grant select, insert, update, delete on document_version to hr_app;
grant select, insert, update, delete on document_version to hr_system;

-- Question and answer of a run until it has ended; then they are a document of kind memory.
create table memory_turn (
    tenant_id text not null references organisation (id) check (tenant_id <> ''),
    run_id text not null check (run_id <> ''),
    user_id text not null check (user_id <> ''),
    conversation_id text not null,
    question text not null default '',
    answer text not null default '',
    created_at timestamptz not null default now(),
    primary key (tenant_id, run_id)
);
create index memory_turn_created on memory_turn (created_at);
call tenant_table('memory_turn', 'tenant_id', 'all');
grant select, insert, update, delete on memory_turn to hr_app;
grant select, insert, update, delete on memory_turn to hr_system;
