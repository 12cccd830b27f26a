-- Index of the object store on a local folder: a blob counts once its row stands here.
create table object_bucket (
    name text primary key check (name <> ''),
    versioned boolean not null
);
grant select, insert, update on object_bucket to hr_system;

create table object_version (
    bucket text not null references object_bucket (name),
    key text collate "C" not null check (key <> ''),
    version text collate "C" not null,
    sequence bigint generated always as identity,
    latest boolean not null,
    deleted boolean not null,
    size bigint not null check (size >= 0),
    sha256 text not null,
    blob text,
    created_at timestamptz not null default clock_timestamp(),
    primary key (bucket, key, sequence),
    check (deleted = (blob is null))
);
create unique index object_version_latest on object_version (bucket, key) where latest;
create unique index object_version_version on object_version (bucket, key, version);
create unique index object_version_blob on object_version (blob);
grant select, insert, update, delete on object_version to hr_system;
