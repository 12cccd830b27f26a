"""`headrace replay` and `headrace incident`, as an operator types them."""

import asyncio
import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import psycopg2
import pytest

from assets.usage import schema
from assets.usage.generation import index_folder
from core.database import dsn
from core.eventlog import open_eventlog
from core.settings import DatabaseSettings, EventLogSettings, ObjectSettings
from core.topology import TOPICS
from deploy.cli.main import main
from deploy.installation import prepare, write_env
from tests.assets.usage.lake import event
from tests.assets.usage.site import Site
from tests.conformance.queue.support import environment
from tests.servers import free_port

Command = Callable[..., tuple[int, str, str]]


@pytest.fixture
def site(postgres: DatabaseSettings, tmp_path: Path) -> Iterator[Site]:
    objects = ObjectSettings(objects_url=(tmp_path / "objects").as_uri())
    made = Site(postgres, EventLogSettings(eventlog_url="postgresql:"), objects, tmp_path / "data" / "state")
    made.reset()

    async def ensure() -> None:
        async with open_eventlog(made.eventlog, postgres) as log:
            await log.ensure_topics(list(TOPICS.values()))

    asyncio.run(ensure())
    yield made
    made.reset()


@pytest.fixture
def headrace(site: Site, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> Iterator[Command]:
    """Runs a command on an installation with these servers and an owner: exit status, output, messages."""
    installation = prepare(tmp_path / "data", None, 0, {})
    values = environment(site.database, site.eventlog, site.objects)
    write_env(
        installation.env_file,
        {**installation.environment, **values, "HEADRACE_STATE_DIR": str(site.state)},
    )
    owners(
        site.database,
        "insert into person (id, email, password_hash, platform_owner) values ('usr_cli', 'cli@example.org', '-', true) on conflict do nothing",
    )

    def run(*words: str) -> tuple[int, str, str]:
        capsys.readouterr()
        status = main([*words, "--data", str(tmp_path / "data")])
        said = capsys.readouterr()
        return status, said.out, said.err

    yield run
    owners(site.database, "delete from person where id = 'usr_cli'")


def owners(database: DatabaseSettings, statement: str) -> None:
    connection = psycopg2.connect(dsn(database, "system"))
    try:
        with connection, connection.cursor() as cursor:
            cursor.execute(statement)
    finally:
        connection.close()


def landed(site: Site, first: int, last: int) -> None:
    site.send([event(number, tenant="org_a") for number in range(first, last)])
    assert site.carry() == 1


def test_a_replay_is_built_shown_promoted_and_nothing_differs(site: Site, headrace: Command) -> None:
    landed(site, 0, 5)
    landed(site, 3, 8)
    cells = site.cells()
    assert headrace("replay", "list") == (0, "only the first generation: nothing was ever replayed\n", "")
    status, said, note = headrace("replay", "run")
    assert status == 0
    assert (
        "generation 2 compared up to slice 2\nevents    0 differ\ncells     0 differ\ncharges   0 differ"
        in said
    )
    assert "`headrace replay promote 2` or `headrace replay discard 2`" in note
    assert headrace("replay", "list")[1].startswith("  2  built ")
    report = json.loads(headrace("replay", "show", "2")[1])
    assert (report["generation"], report["state"], report["through_slice"]) == (2, "built", 2)
    assert headrace("replay", "promote", "2") == (
        0, "generation 2 counts since slice 2; what was invoiced differs as adjustments\n", "",
    )  # fmt: skip
    assert headrace("replay", "list")[1].startswith("  2  promoted ")
    landed(site, 7, 12)
    assert index_folder(site.state, 2).is_dir()
    fates = site.sql("select sum(counted)::int, sum(duplicates)::int from usage_conservation")
    assert (fates, site.cells() == cells) == ([(12, 3)], False)


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (("show", "9"), "there is no generation 9; see `headrace replay list`"),
        (("promote", "9"), "there is no generation 9; see `headrace replay list`"),
        (("discard", "1"), "there is no generation 1; see `headrace replay list`"),
        (("run", "--first", "9"), "nothing from slice 9 to the end: published are slices 1 to 1"),
        (
            ("run", "--first", "3", "--last", "2"),
            "nothing from slice 3 to slice 2: published are slices 1 to 1",
        ),
        (("run", "--first", "0"), "nothing from slice 0 to the end"),
    ],
)
def test_what_cannot_be_replayed_is_refused_in_words(
    site: Site, headrace: Command, words: tuple[str, ...], said: str
) -> None:
    landed(site, 0, 3)
    status, out, note = headrace("replay", *words)
    assert (status, out) == (1, ""), note
    assert note.startswith("headrace: ")
    assert said in note


def test_a_discarded_generation_cannot_count(site: Site, headrace: Command) -> None:
    landed(site, 0, 3)
    assert headrace("replay", "run", "--json")[0] == 0
    assert headrace("replay", "discard", "2") == (0, "generation 2 is gone\n", "")
    status, _, note = headrace("replay", "promote", "2")
    assert (status, note) == (1, "headrace: generation 2 was discarded\n")


def test_before_anything_has_landed_there_is_nothing_to_replay(headrace: Command) -> None:
    status, _, note = headrace("replay", "run")
    assert (status, "published are slices 1 to 0" in note) == (1, True)
    assert headrace("replay", "list")[1].startswith("only the first generation")


def test_a_topic_that_is_not_there_is_said_in_words(site: Site, headrace: Command) -> None:
    async def delete() -> None:
        async with open_eventlog(site.eventlog, site.database) as log:
            await log.delete_topic(schema.TOPIC)

    asyncio.run(delete())
    status, said, note = headrace("incident", "list")
    assert (status, said) == (1, "")
    assert note == "headrace: topic 'usage.records' does not exist; `headrace up` makes it\n"
    assert headrace("incident", "accept", "gap:usage.records:1:0:1-2", "--reason", "x")[0] == 1


def test_a_gap_is_listed_accepted_and_landing_goes_on(site: Site, headrace: Command) -> None:
    assert headrace("incident", "list") == (0, "every topic is where landing left it\n", "")
    landed(site, 0, 3)
    (partition,) = [p for p, bound in site.bounds().items() if bound.high]
    site.send([event(number, tenant="org_a") for number in range(10, 14)])

    async def delete() -> None:
        async with open_eventlog(site.eventlog, site.database) as log:
            await log.purge(schema.TOPIC, {partition: site_high})

    site_high = site.bounds()[partition].high
    asyncio.run(delete())
    status, said, _ = headrace("incident", "list")
    name = said.splitlines()[0]
    assert (status, name.split(":")[0]) == (0, "gap")
    assert "offsets 3 to 6 are gone before they landed" in said
    assert "Then accept it" in said
    found = json.loads(headrace("incident", "list", "--json")[1])
    assert [each["name"] for each in found["incidents"]] == [name]
    for wrong in ("gap:usage.records", "nothing", name + "0"):
        status, _, note = headrace("incident", "accept", wrong, "--reason", "x")
        assert (status, note.startswith("headrace: ")) == (1, True)
    status, said, note = headrace("incident", "accept", name, "--reason", "retention was an hour")
    assert (status, note) == (0, "")
    assert "booked as lost" in said
    listed = headrace("incident", "list")[1]
    assert listed.startswith("every topic is where landing left it\naccepted ")
    assert "offsets 3 to 6: retention was an hour" in listed
    landed(site, 20, 22)


@pytest.mark.parametrize(
    "words",
    [("replay", "list"), ("replay", "run"), ("incident", "list"), ("purge", "plan")],
    ids=" ".join,
)
def test_a_platform_that_does_not_run_is_said_in_words(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], words: tuple[str, ...]
) -> None:
    installation = prepare(tmp_path / "data", None, 0, {})
    url = f"postgresql://127.0.0.1:{free_port()}/headrace"
    write_env(installation.env_file, {**installation.environment, "HEADRACE_DATABASE_URL": url})
    status = main([*words, "--data", str(tmp_path / "data")])
    said: Any = capsys.readouterr()
    assert (status, said.out) == (1, "")
    assert "PostgreSQL does not answer" in said.err
    assert "`headrace up`" in said.err
