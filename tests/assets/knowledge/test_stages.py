"""A batch on real servers: from files to passages that are found, whatever the files are and whatever dies."""

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from assets.knowledge import stages, worklist
from assets.knowledge.reconcile import Reconciled, reconcile
from core.contracts.usage import parse as usage_event
from core.embedding.hashing import HashModel
from core.objects import open_objects
from core.settings import DatabaseSettings, VectorSettings
from core.vectors import ModelMismatchError, Vectors
from tests.assets.knowledge.library import Library, bomb, docx, encrypted_pdf, pdf, scan
from tests.servers import free_port

HANDBOOK = b"""# Handbook

## Headgates

A headgate lets water into the race. Close it before the winter, or ice will break it.

## Turbines

The turbine in the east house makes forty kilowatts. Grease its bearings each month.
"""


@pytest.fixture
async def library(postgres: DatabaseSettings, tmp_path: Path, milvus_lite: VectorSettings) -> Library:
    return await Library.make(postgres, tmp_path, milvus_lite)


async def test_every_file_ends_with_its_state_and_its_reason(library: Library) -> None:
    files = {
        "handbook.md": (HANDBOOK, "indexed", ""),
        "two pages.pdf": (pdf("Water turns the wheel.", "The wheel turns the mill."), "indexed", ""),
        "zh.txt": ("水渠的闸门在冬天要关上。".encode("gb18030"), "indexed", ""),
        "empty.pdf": (b"", "failed", "empty"),
        "bomb.docx": (bomb(), "failed", "would unpack to 4"),
        "encrypted.pdf": (encrypted_pdf(), "failed", "encrypted"),
        "cut off.docx": (docx(("Normal", "Text"))[:-900], "failed", "damaged or cut off"),
        "cut off.pdf": (b"%PDF-1.7\n1 0 obj\n<<", "failed", "damaged or cut off"),
        "scan.pdf": (scan(), "needs_ocr", "scanned"),
        "blank.txt": (b" \n ", "failed", "no text"),
        "table.xlsx": (b"\xd0\xcf\x11\xe0\xa1\xb1\x1a\xe1", "failed", "are not read"),
    }
    keys = {name: await library.upload(name, content) for name, (content, _, _) in files.items()}
    await library.run(*keys.values())
    for name, (_, state, reason) in files.items():
        found = await library.state(keys[name])
        assert found[0] == state, (name, found)
        assert reason in found[1]
        assert bool(found[1]) is (state != "indexed")
        assert (await library.live(keys[name][1]) == 1) is (state == "indexed")
    assert await library.due() == []


async def test_what_is_found_stands_in_the_text(library: Library) -> None:
    key = await library.upload("handbook.md", HANDBOOK)
    await library.run(key)
    document, version, body, start, end = (await library.found("grease the bearings of the turbine"))[0]
    assert (document, version) == key[1:]
    ((text_key,),) = await library.sql(
        "select text_key from document_version where tenant_id = :tenant and document_id = :id", id=document
    )
    async with open_objects(library.objects, library.database) as store:
        source = (await store.get("derived", text_key)).decode()
    assert source[start:end] == body
    assert "Grease its bearings each month." in body


async def test_unchanged_content_is_neither_read_nor_embedded_again(library: Library) -> None:
    first = await library.upload("handbook.md", HANDBOOK)
    done = await library.run(first)
    assert [(step.made, step.embedded > 0) for step in done[:3]] == [(1, False), (1, False), (1, True)]
    same = await library.upload("handbook.md", HANDBOOK, document=first[1])
    done = await library.run(same)
    assert [(step.made, step.embedded) for step in done[:3]] == [(0, 0), (0, 0), (0, 0)]
    assert await library.live(first[1]) == 2
    assert await library.count(first[1], 1) == 0
    assert await library.count(first[1]) == done[3].passages > 0


async def test_of_a_changed_document_only_new_passages_are_embedded(library: Library) -> None:
    sections = [f"# Section {i}\n\n" + f"Gate number {i} is opened by hand. " * 20 for i in range(6)]
    first = await library.upload("a.md", "\n\n".join(sections).encode())
    whole = (await library.run(first))[2].embedded
    sections[3] = sections[3].replace("by hand", "by a motor")
    second = await library.upload("a.md", "\n\n".join(sections).encode(), document=first[1])
    assert 0 < (await library.run(second))[2].embedded < whole / 2


async def test_tokens_are_metered_once(library: Library) -> None:
    first = await library.upload("handbook.md", HANDBOOK)
    done = await library.run(first)
    await library.sql("update document_version set state = 'queued', attempt = 0 where tenant_id = :tenant")
    await library.run(first)
    rows = await library.sql("select value from outbox where tenant_id = :tenant and topic = 'usage.records'")
    events = [usage_event(bytes(row[0])) for row in rows]
    assert {event.identity for event in events} == {events[0].identity}
    assert len({event.encode() for event in events}) == 1
    assert events[0].data.quantity == str(done[2].tokens)


async def test_a_poison_document_fails_its_own_row_after_three_tries(library: Library) -> None:
    poison, good = await library.upload("a.md", b"Poison."), await library.upload("handbook.md", HANDBOOK)

    async def spoil(shop: stages.Workshop) -> None:
        async with shop.database.writer() as connection:
            (task,) = await worklist.tasks(connection, [poison], "queued")
        async with open_objects(library.objects, library.database) as store:
            await store.put("derived", shop.names(task).text, b"Poison.")
            await store.put("derived", shop.names(task).structure, b"no structure")

    await library.in_shop(spoil)
    seen = []
    for _ in range(3):
        await library.run(poison, good)
        seen.append(await library.state(poison))
        await library.due_now(poison)
    assert [state for state, _ in seen] == ["queued", "queued", "failed"]
    assert "(3 tries)" in seen[-1][1]
    assert (await library.state(good))[0] == "indexed"


async def test_a_version_whose_run_dies_three_times_is_given_up(library: Library) -> None:
    key = await library.upload("handbook.md", HANDBOOK)

    async def die(shop: stages.Workshop) -> None:
        async with shop.database.writer() as connection:
            assert len(await worklist.take(connection, [key])) == 1

    for _ in range(3):
        await library.in_shop(die)
        await library.due_now(key)
    await library.run(key)
    state, reason = await library.state(key)
    assert state == "failed"
    assert "3 times" in reason


async def test_a_store_that_is_away_is_no_try_of_the_document(library: Library) -> None:
    key = await library.upload("handbook.md", HANDBOOK)
    away = library.vectors.model_copy(update={"vectors_url": f"http://127.0.0.1:{free_port()}"})
    reachable, library.vectors = library.vectors, away
    with pytest.raises(stages.NothingDoneError):
        await library.run(key)
    assert (await library.state(key))[0] == "queued"
    ((attempt,),) = await library.sql("select attempt from document_version where tenant_id = :tenant")
    assert attempt == 0
    library.vectors = reachable
    await library.run(key)
    assert (await library.state(key))[0] == "indexed"


async def test_what_is_cancelled_or_deleted_meanwhile_is_not_made_visible(library: Library) -> None:
    cancelled, deleted = await library.upload("a.md", HANDBOOK), await library.upload("b.md", HANDBOOK)

    async def steps(shop: stages.Workshop) -> None:
        keys = [cancelled, deleted]
        await stages.read_texts(shop, keys)
        await stages.make_passages(shop, keys)
        await stages.make_vectors(shop, keys)
        await library.sql(
            "update document_version set state = 'cancelled' where tenant_id = :tenant and document_id = :id",
            id=cancelled[1],
        )
        await library.sql(
            "update document set deleted_at = now() where tenant_id = :tenant and id = :id", id=deleted[1]
        )
        index = Vectors(library.vectors)
        await stages.put_into_index(shop, index, keys)
        index.close()

    await library.in_shop(steps)
    for key in (cancelled, deleted):
        assert await library.live(key[1]) is None
        assert await library.count(key[1]) == 0


async def test_a_version_that_is_overtaken_leaves_no_chunk(library: Library) -> None:
    first = await library.upload("a.md", HANDBOOK)
    second = await library.upload("a.md", HANDBOOK + b"\nMore.", document=first[1])
    await library.run(second)
    await library.run(first)
    assert await library.live(first[1]) == 2
    assert (await library.state(first))[0] == "cancelled"
    assert await library.count(first[1], 1) == 0


async def test_reconciling_rebuilds_what_the_index_lost_and_removes_what_nobody_sees(
    library: Library,
) -> None:
    first = await library.upload("a.md", HANDBOOK)
    await library.run(first)
    second = await library.upload("a.md", HANDBOOK + b"\nMore.", document=first[1])
    await library.run(second)
    chunks = await library.count(first[1], 2)
    index = Vectors(library.vectors)
    index.delete(library.tenant, first[1])
    index.close()
    await library.sql("update document_version set chunks = 9 where tenant_id = :tenant and version = 1")
    found = await asyncio.to_thread(reconcile, library.database, library.vectors, library.model)
    assert found.queued >= 1
    assert found.removed >= 1
    assert (await library.state(second))[0] == "queued"
    done = await library.run(second)
    assert done[2].embedded == 0
    assert await library.count(first[1], 2) == chunks


async def test_a_rewrite_that_was_cancelled_is_done_all_the_same(library: Library) -> None:
    """The version is visible: half of it would be found for ever."""
    key = await library.upload("a.md", HANDBOOK)
    await library.run(key)
    chunks = await library.count(key[1])
    index = Vectors(library.vectors)
    index.delete(library.tenant, key[1])
    index.close()

    async def reconciled() -> Reconciled:
        return await asyncio.to_thread(reconcile, library.database, library.vectors, library.model)

    await reconciled()
    assert (await library.state(key))[0] == "queued"
    cancelled = (
        "update document_version set state = 'cancelled' where tenant_id = :tenant and document_id = :id"
    )
    await library.sql(cancelled, id=key[1])
    assert (await reconciled()).queued >= 1
    assert (await library.state(key))[0] == "queued"
    await library.run(key)
    assert await library.count(key[1]) == chunks
    # What is whole stays as the person left it, and what cannot be read is not tried for ever.
    await library.sql(cancelled, id=key[1])
    await reconciled()
    assert (await library.state(key))[0] == "cancelled"
    await library.sql(cancelled.replace("'cancelled'", "'failed', chunks = 99"), id=key[1])
    assert (await reconciled()).broken >= 1
    assert (await library.state(key))[0] == "failed"
    await library.sql("update document set deleted_at = now(), live_version = null where id = :id", id=key[1])


class NewerModel(HashModel):
    """As if the weights were others."""

    digest = "e" * 64


@pytest.fixture
async def alone(library: Library) -> AsyncIterator[Library]:
    """Documents of other tests cannot be indexed here, so for a while they are as good as deleted."""
    others = await library.sql(
        "select tenant_id, id, live_version from document where deleted_at is null and tenant_id <> :tenant"
    )
    await library.sql(
        "update document set deleted_at = 'epoch', live_version = null "
        "where deleted_at is null and tenant_id <> :tenant"
    )
    yield library
    for owner, document, version in others:
        await library.sql(
            "update document set deleted_at = null, live_version = :version "
            "where tenant_id = :owner and id = :document",
            owner=owner, document=document, version=version,
        )  # fmt: skip


async def test_another_model_takes_over_once_its_index_is_complete(alone: Library) -> None:
    library = alone
    keys = [await library.upload("a.md", HANDBOOK), await library.upload("b.md", HANDBOOK + b"\nMore.")]
    await library.run(*keys)
    chunks = [await library.count(document) for _, document, _ in keys]
    old = library.model

    async def reconciled() -> Reconciled:
        return await asyncio.to_thread(reconcile, library.database, library.vectors, library.model)

    async def metered() -> int:
        ((count,),) = await library.sql(
            "select count(*) from outbox where topic = 'usage.records' and convert_from(value, 'UTF8')::jsonb ->> 'tenant' = :tenant"
        )
        return int(count)

    before = await metered()
    assert before == 2
    library.model = NewerModel()
    try:
        assert [await library.count(document) for _, document, _ in keys] == [0, 0]
        assert (await reconciled()).queued == 2
        done = await library.run(keys[0])
        assert done[0].made == 0
        assert done[2].embedded == chunks[0]
        with pytest.raises(ModelMismatchError):
            await library.found("headgate")
        assert not (await reconciled()).activated, "the other document is on its way"
        await library.run(keys[1])
        assert (await reconciled()).activated
        assert [await library.count(document) for _, document, _ in keys] == chunks
        assert await metered() == before, "another model of ours is no usage of theirs"
        assert {document for document, *_ in await library.found("headgate")} == {key[1] for key in keys}
        assert not (await reconciled()).activated
    finally:
        index = Vectors(library.vectors, old)
        index.ensure(old)
        index.activate(old)
        index.forget_others()
        index.close()


async def test_a_run_that_ends_between_any_two_steps_is_repeated_without_a_trace(library: Library) -> None:
    whole = await library.upload("handbook.md", HANDBOOK)
    await library.run(whole)
    expected = await library.found("grease the bearings")
    for steps in (1, 2, 3):
        key = await library.upload("handbook.md", HANDBOOK, document=whole[1])

        async def begun(shop: stages.Workshop, steps: int = steps, key: worklist.Key = key) -> None:
            for step in (stages.read_texts, stages.make_passages, stages.make_vectors)[:steps]:
                await step(shop, [key])

        await library.in_shop(begun)
        assert await library.live(key[1]) == key[2] - 1
        await library.due_now(key)
        await library.run(key)
        assert await library.live(key[1]) == key[2]
        assert [(text, start) for _, _, text, start, _ in await library.found("grease the bearings")] == [
            (text, start) for _, _, text, start, _ in expected
        ]
