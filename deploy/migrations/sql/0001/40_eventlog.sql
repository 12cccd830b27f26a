-- The event log on tables (core/eventlog/postgres.py): the embedded stand-in for Apache Kafka.
-- It is the platform's plumbing, not a tenant's data: hr_app has no right on this schema at all.
create schema eventlog;

-- `ref` keeps the keys of eventlog.record short; `id` is what the world sees: it differs after a
-- topic was deleted and made anew.
create table eventlog.topic (
    ref integer generated always as identity primary key,
    name text not null unique check (name <> ''),
    id uuid not null unique default gen_random_uuid(),
    partitions integer not null check (partitions > 0),
    retention_ms bigint not null check (retention_ms > 0),
    max_record_bytes integer not null check (max_record_bytes > 0),
    created_at timestamptz not null default now()
);

-- Its row lock orders the writers: `high` and the records that it counts commit together, so
-- offsets are dense and a reader never sees offset n before n-1.
create table eventlog.partition (
    topic_ref integer not null references eventlog.topic (ref) on delete cascade,
    partition integer not null check (partition >= 0),
    low bigint not null default 0,
    high bigint not null default 0,
    last_ms bigint not null default 0,
    primary key (topic_ref, partition),
    check (0 <= low and low <= high)
) with (fillfactor = 10);

-- Time (`ms`, broker time) never goes back within a partition: finding an offset by time is a
-- binary search over the primary key, without a second index.
create table eventlog.record (
    topic_ref integer not null,
    partition integer not null,
    off bigint not null,
    ms bigint not null,
    key bytea not null,
    value bytea not null,
    headers bytea,
    primary key (topic_ref, partition, off)
);

-- Consumer groups. The group's row is the lock under which members take and give up partitions.
create table eventlog.consumer_group (
    name text primary key check (name <> ''),
    generation bigint not null default 0
);
create table eventlog.group_member (
    group_name text not null references eventlog.consumer_group (name) on delete cascade,
    member uuid not null,
    topics text[] not null,
    expires_at timestamptz not null,
    primary key (group_name, member)
);
-- `epoch` grows with every change of hands and fences the commits of a former holder.
create table eventlog.group_partition (
    group_name text not null references eventlog.consumer_group (name) on delete cascade,
    topic_ref integer not null,
    partition integer not null,
    member uuid,
    epoch bigint not null default 0,
    next_off bigint check (next_off >= 0),
    committed_at timestamptz,
    primary key (group_name, topic_ref, partition),
    foreign key (topic_ref, partition) references eventlog.partition (topic_ref, partition) on delete cascade
) with (fillfactor = 20);
create index group_partition_topic on eventlog.group_partition (topic_ref, partition);

-- First offset of a partition at or after a time; `high` where there is none.
create function eventlog.offset_for_time(wanted_topic integer, wanted_partition integer, wanted_ms bigint)
returns bigint language plpgsql stable as $$
declare lo bigint; hi bigint; middle bigint; found_ms bigint;
begin
    select p.low, p.high into lo, hi from eventlog.partition p
    where p.topic_ref = wanted_topic and p.partition = wanted_partition;
    while lo < hi loop
        middle := (lo + hi) / 2;
        select r.ms into found_ms from eventlog.record r
        where r.topic_ref = wanted_topic and r.partition = wanted_partition and r.off = middle;
        if found_ms < wanted_ms then lo := middle + 1; else hi := middle; end if;
    end loop;
    return lo;
end $$;

-- Changes to a group are functions, so that its lock is never held over a round trip: a client that
-- is frozen in the middle would stop the whole group. Each locks the group's row first; what it reads
-- afterwards is then the newest state.

-- Others shall look at the group again.
create function eventlog.group_announce(wanted_group text) returns bigint
language plpgsql set search_path = eventlog as $$
declare announced bigint;
begin
    update consumer_group set generation = generation + 1 where name = wanted_group returning generation into announced;
    perform pg_notify('eventlog', 'group:' || wanted_group);
    return announced;
end $$;

-- A member says that it lives: the dead are buried, their partitions freed, new partitions added.
-- Returns the generation; only what changes the group raises it.
create function eventlog.group_join(
    wanted_group text, wanted_member uuid, wanted_topics text[], session_seconds double precision)
returns bigint language plpgsql set search_path = eventlog as $$
declare current bigint; changed boolean := false; n bigint;
begin
    insert into consumer_group (name) values (wanted_group) on conflict do nothing;
    select generation into current from consumer_group where name = wanted_group for update;
    delete from group_member
    where group_name = wanted_group and member <> wanted_member and expires_at < clock_timestamp();
    get diagnostics n = row_count;
    changed := changed or n > 0;
    update group_member set expires_at = clock_timestamp() + make_interval(secs => session_seconds)
    where group_name = wanted_group and member = wanted_member;
    if not found then
        insert into group_member values (wanted_group, wanted_member, wanted_topics,
                                         clock_timestamp() + make_interval(secs => session_seconds));
        changed := true;
    end if;
    update group_partition g set member = null, epoch = epoch + 1
    where group_name = wanted_group and member is not null
        and not exists (select from group_member m where m.group_name = wanted_group and m.member = g.member);
    insert into group_partition (group_name, topic_ref, partition)
    select wanted_group, p.topic_ref, p.partition from partition p join topic t on t.ref = p.topic_ref
    where t.name = any(wanted_topics) on conflict do nothing;
    get diagnostics n = row_count;
    if changed or n > 0 then current := group_announce(wanted_group); end if;
    return current;
end $$;

-- Take free partitions, unless the group has changed since that generation (then nothing is taken).
-- `starts` is where a partition begins that was never committed; null leaves that open.
create function eventlog.group_take(
    wanted_group text, wanted_member uuid, seen_generation bigint,
    topic_refs integer[], partitions integer[], starts bigint[])
returns bigint language plpgsql set search_path = eventlog as $$
begin
    perform from consumer_group where name = wanted_group and generation = seen_generation for update;
    if not found then return null; end if;
    update group_partition g
    set member = wanted_member, epoch = g.epoch + 1, next_off = coalesce(g.next_off, w.start)
    from unnest(topic_refs, partitions, starts) as w (topic_ref, partition, start)
    where g.group_name = wanted_group and g.topic_ref = w.topic_ref and g.partition = w.partition
        and g.member is null;
    return group_announce(wanted_group);
end $$;

-- Give up some partitions, or (null) all of them and the membership.
create function eventlog.group_release(
    wanted_group text, wanted_member uuid, topic_refs integer[], partitions integer[])
returns bigint language plpgsql set search_path = eventlog as $$
begin
    perform from consumer_group where name = wanted_group for update;
    if topic_refs is null then
        delete from group_member where group_name = wanted_group and member = wanted_member;
    end if;
    update group_partition g set member = null, epoch = epoch + 1
    where g.group_name = wanted_group and g.member = wanted_member
        and (topic_refs is null
             or (g.topic_ref, g.partition) in (select * from unnest(topic_refs, partitions)));
    return group_announce(wanted_group);
end $$;

grant usage on schema eventlog to hr_system;
grant select, insert, update, delete on all tables in schema eventlog to hr_system;
revoke all on all functions in schema eventlog from public;
grant execute on all functions in schema eventlog to hr_system;
