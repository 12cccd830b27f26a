"""Objects are read again for ever; one that is lost or changed is named with its offsets and tenants."""

from assets.usage import schema
from assets.usage.objects import recorded
from assets.usage.progress import scrub_is_due
from assets.usage.scrub import Scrubbed, scrub
from core.lake.maintenance import compact
from core.lake.objects import content
from tests.assets.usage.site import Site
from tests.assets.usage.test_purge import fill, flip, go

MUCH = 1 << 30


def look(site: Site, *, most: int = MUCH) -> Scrubbed:
    return scrub(site.objects, site.database, most_bytes=most)


def test_what_is_as_it_was_is_intact(site: Site) -> None:
    fill(site, slices=3)
    done = look(site)
    known = recorded(site.lake(), site.database)
    assert (done.objects, done.bytes, done.problems) == (3, sum(each.bytes for each in known), [])
    assert compact(site.lake(), schema.EVENTS, order=schema.ORDERS[schema.EVENTS]).removed == 3
    done = look(site)
    assert (done.objects, done.problems) == (1, [])


def test_an_object_that_changed_or_went_after_the_purge_is_named(site: Site) -> None:
    fill(site, slices=3)
    assert go(site).lows
    first, second, third = recorded(site.lake(), site.database)
    whole = content(site.lake(), schema.EVENTS, first.path)
    site.damage(first.path, flip(-9))
    site.lose(third.path)
    assert scrub_is_due(site.database) is False
    for _ in range(2):
        problems = look(site).problems
        assert len(problems) == 2
        for problem, each, what in zip(problems, (first, third), ("changed", "lost"), strict=True):
            assert problem.startswith(f"object usage_events/{each.path} (")
            assert f"is {what}" in problem
            for part in each.ranges:
                assert str(part) in problem
            assert "tenants -, org_a, org_b" in problem or "tenants org_a, org_b" in problem
        assert scrub_is_due(site.database)
    site.damage(first.path, lambda _: whole)
    assert [second.path in problem for problem in look(site).problems] == [False]


def test_a_run_is_bounded_and_the_next_goes_on(site: Site) -> None:
    fill(site, slices=3)
    paths = [each.path for each in recorded(site.lake(), site.database)]
    seen = []
    for _ in range(3):
        assert look(site, most=1).objects == 1
        seen.append(site.sql("select path from usage_object order by checked_at desc limit 1")[0][0])
    assert sorted(seen) == sorted(paths)
    broken = paths[1]
    site.damage(broken, flip(0))
    assert sum(bool(look(site, most=1).problems) for _ in range(3)) >= 1
    look(site, most=1)
    assert site.sql("select path from usage_object order by checked_at desc limit 1") == [(broken,)], (
        "it is read each time"
    )


def test_an_object_that_was_gone_before_anybody_recorded_it_is_named_by_the_log(site: Site) -> None:
    fill(site, slices=1)
    site.sql("delete from usage_object")
    path = next(iter(site.lake().open(schema.EVENTS).file_uris())).rpartition("/")[2]  # type: ignore[union-attr]
    site.lose(path)
    (problem,) = look(site).problems
    assert f"object usage_events/{path}" in problem
    assert "slices 1 to 1" in problem
    assert "org_a" in problem


def test_a_file_that_the_table_lost_sight_of_is_noticed(site: Site) -> None:
    """A commit that took rows away is no damage to any object that is named."""
    fill(site, slices=2)
    handle = site.lake().open(schema.EVENTS)
    assert handle is not None
    handle.delete("slice = 2")
    rows = sum(each.records for each in recorded(site.lake(), site.database))
    assert look(site).problems == [f"usage_events has {rows} rows, its positions promise {26}"]
