"""Documents over HTTP: stored, queued, found, replaced, deleted; nobody else sees them."""

import asyncio
import hashlib
from typing import Any

import pytest
from sqlalchemy import text

from core.contracts.knowledge import DocumentJob
from core.database import Database
from core.knowledge import derived
from core.messaging import queues
from core.objects import open_objects
from services.memory.erase import Eraser
from tests.services.memory.platform import Caller, Indexer, Platform

CATS = "The cat sat on the mat and looked at the moon. " * 3


async def eventually(find: Any, *, seconds: float = 20) -> Any:
    """What `find` gives once that is true."""
    async with asyncio.timeout(seconds):
        while not (found := await find()):  # noqa: ASYNC110 - another process decides
            await asyncio.sleep(0.05)
    return found


async def test_a_document_is_stored_queued_indexed_and_found(acme: Caller, indexer: Indexer) -> None:
    base = await acme.base()
    announced = await acme.announce(
        base, "cats.md", size=len(CATS), sha256=hashlib.sha256(CATS.encode()).hexdigest()
    )
    assert announced.status == 202
    assert announced.json["document"]["state"] == "uploading"
    assert announced.json["document"]["version"]["media_type"] == "text/markdown"
    stored = await acme.put(announced.json["upload"]["url"], CATS.encode())
    assert stored.json | {"sha256": ""} == {
        "document": announced.json["document"]["id"], "version": 1, "state": "queued", "size": len(CATS), "sha256": "",
    }  # fmt: skip
    again = await acme.put(announced.json["upload"]["url"], CATS.encode())
    assert again.json == stored.json
    other = await acme.put(announced.json["upload"]["url"], b"other bytes")
    assert (other.status, other.json["code"]) == (409, "already_uploaded")
    document = stored.json["document"]
    assert (await acme.search("moon"))["data"] == []
    await indexer.index(acme.tenant, document)
    for mode in ("dense", "lexical", "hybrid"):
        found = await acme.search("cats and the moon", mode=mode, top_k=2)
        assert [one["document"] for one in found["data"]] == [document] * 2, mode
    passage = found["data"][0]
    assert passage["text"] == CATS[passage["start"] : passage["end"]]
    assert passage["name"] == "cats.md"
    where = f"/api/v1/documents/{document}/versions/1/text?start={passage['start']}&end={passage['end']}"
    assert (await acme.call("GET", where)).json["text"] == passage["text"]
    listed = await acme.call("GET", f"/api/v1/knowledge-bases/{base}/documents")
    assert [(one["id"], one["state"], one["live_version"]) for one in listed.json["data"]] == [
        (document, "indexed", 1)
    ]


async def test_what_was_announced_must_come(acme: Caller, platform: Platform) -> None:
    base = await acme.base()
    announced = (await acme.announce(base, "a.txt", size=3)).json
    refused = await acme.put(announced["upload"]["url"], b"ab")
    assert (refused.status, refused.json["code"]) == (422, "content_differs")
    announced = (await acme.announce(base, "big.bin")).json
    large = await acme.put(announced["upload"]["url"], b"x" * 300_001)
    assert (large.status, large.json["code"]) == (413, "body_too_large")

    async def pieces() -> Any:
        for _ in range(40):
            yield b"y" * 10_000

    token = announced["upload"]["url"].rpartition("/")[2]
    async with acme.http.put(f"{platform.address}/api/v1/uploads/{token}", data=pieces()) as answer:
        assert answer.status == 413
    async with open_objects(platform.objects, platform.database) as objects:
        prefix = f"{acme.tenant}/"
        assert [one async for one in objects.list("knowledge", prefix)] == []
    url = announced["upload"]["url"]
    forged = await acme.put(url[:-1] + ("0" if url[-1] != "0" else "1"), b"x")
    assert (forged.status, forged.json["code"]) == (403, "upload_refused")


async def test_a_job_puts_its_version_on_the_work_list(acme: Caller, system: Database) -> None:
    announced = (await acme.announce(await acme.base(), "a.txt")).json
    document = announced["document"]["id"]
    jobs = [DocumentJob(acme.tenant, "", document, 1), DocumentJob(acme.tenant, "", "doc_unknown", 1)]
    async with system.writer() as connection:
        for job in jobs:
            await queues.enqueue(connection, "document.index", "index", job.encode(), acme.tenant)

    async def queued() -> bool:
        found = await acme.call("GET", f"/api/v1/documents/{document}")
        return bool(found.json["state"] == "queued")

    await eventually(queued)


async def test_nobody_else_sees_them(acme: Caller, globex: Caller, indexer: Indexer) -> None:
    base = await acme.base()
    document = await acme.upload(base, "secret.txt", CATS)
    await indexer.index(acme.tenant, document)
    own = await globex.upload(await globex.base(), "own.txt", CATS)
    await indexer.index(globex.tenant, own)
    assert {one["document"] for one in (await globex.search("cat moon", top_k=50))["data"]} == {own}
    assert (await globex.search("cat moon", knowledge_bases=[base]))["data"] == []
    for method, path in (
        ("GET", f"/api/v1/knowledge-bases/{base}"),
        ("PATCH", f"/api/v1/knowledge-bases/{base}"),
        ("DELETE", f"/api/v1/knowledge-bases/{base}"),
        ("GET", f"/api/v1/knowledge-bases/{base}/documents"),
        ("POST", f"/api/v1/knowledge-bases/{base}/documents"),
        ("GET", f"/api/v1/documents/{document}"),
        ("GET", f"/api/v1/documents/{document}/versions"),
        ("POST", f"/api/v1/documents/{document}/versions"),
        ("POST", f"/api/v1/documents/{document}/reindex"),
        ("POST", f"/api/v1/documents/{document}/cancel"),
        ("DELETE", f"/api/v1/documents/{document}"),
        ("GET", f"/api/v1/documents/{document}/versions/1/text?start=0&end=5"),
    ):
        body = {"name": "x"} if method in {"PATCH", "POST"} and not path.endswith(("versions",)) else {}
        answer = await globex.call(method, path, body)
        assert (answer.status, answer.json["code"]) == (404, "not_found"), (method, path)
    assert (await acme.call("GET", f"/api/v1/documents/{document}")).json["live_version"] == 1


async def test_deleted_is_gone_from_the_very_next_request_and_then_everywhere(
    acme: Caller, indexer: Indexer, system: Database, platform: Platform
) -> None:
    base = await acme.base()
    kept = await acme.upload(base, "kept.txt", CATS)
    gone = await acme.upload(base, "gone.txt", CATS + "and the dog")
    same = await acme.upload(base, "same.txt", CATS)
    for document in (kept, gone, same):
        await indexer.index(acme.tenant, document)
    for document in (gone, same):
        assert (await acme.call("DELETE", f"/api/v1/documents/{document}")).status == 204
        found = await acme.search("cat dog moon", top_k=50, explain=True)
        assert document not in {one["document"] for one in found["data"]}
        assert (await acme.call("GET", f"/api/v1/documents/{document}")).status == 404

    async def erased() -> bool:
        async with system.writer() as connection:
            rows = await connection.execute(
                text(
                    "select count(*) from document where id = any(:ids) and erased_at is not null and name = ''"
                ),
                {"ids": [gone, same]},
            )
            return bool(rows.scalar_one() == 2)

    await eventually(erased)
    assert indexer.vectors.count(acme.tenant, gone) == 0
    assert indexer.vectors.count(acme.tenant, kept) == 3
    async with open_objects(platform.objects, platform.database) as objects:
        left = [one.key async for one in objects.versions("knowledge", f"{acme.tenant}/")]
        assert left == [f"{acme.tenant}/{kept}/1"]
        # what `same` and `kept` share stays with the one that is left
        texts = [one.key async for one in objects.list("derived", f"{acme.tenant}/")]
        assert [key.split("/")[1] for key in texts] == [hashlib.sha256(CATS.encode()).hexdigest()]
    assert {one["document"] for one in (await acme.search("cat", top_k=50))["data"]} == {kept}


async def test_what_a_late_writer_leaves_of_an_erased_document_is_found(
    acme: Caller, indexer: Indexer, system: Database, platform: Platform
) -> None:
    content = CATS + "and a run that was on its way"
    document = await acme.upload(await acme.base(), "late.txt", content)
    assert (await acme.call("DELETE", f"/api/v1/documents/{document}")).status == 204

    async def erased() -> bool:
        async with system.writer() as connection:
            rows = await connection.execute(
                text("select erased_at is not null from document where id = :id"), {"id": document}
            )
            return bool(rows.scalar_one())

    await eventually(erased)
    key = derived.text_key(acme.tenant, hashlib.sha256(content.encode()).hexdigest(), "test-1")
    async with open_objects(platform.objects, platform.database) as objects:
        await objects.put(derived.BUCKET, key, content.encode())
        indexer.vectors.upsert(acme.tenant, indexer.chunks(acme.tenant, document, 1, content, "kb", ""))
        assert await Eraser(system, objects, indexer.vectors).reconcile() == 1
        assert [one async for one in objects.list(derived.BUCKET, f"{acme.tenant}/")] == []
    assert indexer.vectors.count(acme.tenant, document) == 0


async def test_a_reader_sees_one_version_at_every_moment(acme: Caller, indexer: Indexer) -> None:
    base = await acme.base()
    document = await acme.upload(base, "v.txt", "version one of the cat")
    await indexer.index(acme.tenant, document)
    seen: list[set[int]] = []
    done = asyncio.Event()

    async def read() -> None:
        while not done.is_set():
            found = await acme.search("version cat", top_k=50)
            seen.append({one["version"] for one in found["data"]})

    readers = [asyncio.create_task(read()) for _ in range(3)]
    for number in range(2, 14):
        announced = await acme.call("POST", f"/api/v1/documents/{document}/versions", {})
        await acme.put(announced.json["upload"]["url"], f"version {number} of the cat".encode())
        await indexer.index(acme.tenant, document)
    done.set()
    await asyncio.gather(*readers)
    assert len(seen) > 20
    assert [versions for versions in seen if len(versions) != 1] == []
    assert seen[-1] <= {12, 13}


async def test_reindex_cancel_and_states(acme: Caller, indexer: Indexer) -> None:
    base = await acme.base()
    announced = (await acme.announce(base, "late.txt")).json
    document = announced["document"]["id"]
    early = await acme.call("POST", f"/api/v1/documents/{document}/reindex")
    assert (early.status, early.json["code"]) == (409, "nothing_stored")
    cancelled = await acme.call("POST", f"/api/v1/documents/{document}/cancel")
    assert (cancelled.json["state"], cancelled.json["version"]["reason"]) == (
        "cancelled",
        "cancelled by request",
    )
    late = await acme.put(announced["upload"]["url"], b"too late")
    assert (late.status, late.json["code"]) == (409, "upload_over")
    document = await acme.upload(base, "twice.txt", CATS)
    await indexer.index(acme.tenant, document)
    again = await acme.call("POST", f"/api/v1/documents/{document}/reindex")
    assert (again.status, again.json["state"], again.json["version"]["version"]) == (202, "queued", 2)
    assert (await acme.search("cat"))["data"][0]["version"] == 1
    assert await indexer.index(acme.tenant, document) == 2
    assert {one["version"] for one in (await acme.search("cat"))["data"]} == {2}


async def test_bases(acme: Caller, indexer: Indexer) -> None:
    first = await acme.base("first")
    second = await acme.base("second")
    taken = await acme.call("POST", "/api/v1/knowledge-bases", {"slug": "first", "name": "x"})
    assert (taken.status, taken.json["code"]) == (409, "slug_taken")
    one = await acme.upload(first, "one.txt", CATS)
    two = await acme.upload(second, "two.txt", CATS)
    for document in (one, two):
        await indexer.index(acme.tenant, document)
    found = await acme.search("cat", knowledge_bases=[second], top_k=50)
    assert {hit["document"] for hit in found["data"]} == {two}
    for nothing in ([], ["kb_none"], ["\u00ad" * 150], ['"; drop'], ["x" * 5_000]):
        assert (await acme.search("cat", knowledge_bases=nothing))["data"] == []
    page = (await acme.call("GET", "/api/v1/knowledge-bases?limit=1&order=asc")).json
    assert ([hit["id"] for hit in page["data"]], page["has_more"]) == ([first], True)
    rest = (await acme.call("GET", f"/api/v1/knowledge-bases?order=asc&after={first}")).json
    assert [hit["id"] for hit in rest["data"]] == [second]
    assert (await acme.call("DELETE", f"/api/v1/knowledge-bases/{second}")).status == 204
    assert {hit["document"] for hit in (await acme.search("cat", top_k=50))["data"]} == {one}
    assert await acme.base("second") != second


async def test_explain_names_the_stage_that_lost_a_candidate(acme: Caller, indexer: Indexer) -> None:
    base = await acme.base()
    document = await acme.upload(base, "v.txt", "the cat of version one")
    await indexer.index(acme.tenant, document)
    announced = await acme.call("POST", f"/api/v1/documents/{document}/versions", {})
    await acme.put(announced.json["upload"]["url"], b"the cat of version two")
    await indexer.index(acme.tenant, document, keep_old=True)
    other = await acme.upload(base, "other.txt", "a cat")
    await indexer.index(acme.tenant, other)
    found = await acme.search("the cat of version", top_k=1, explain=True)
    lost = {(one["document"], one["version"]): one["lost"] for one in found["explain"]["candidates"]}
    assert lost == {(document, 1): "visibility", (document, 2): "", (other, 1): "top_k"}


@pytest.mark.parametrize("scope", ["memory:read", "memory:write"])
async def test_scopes(acme: Caller, scope: str) -> None:
    only = acme.colleague(scopes=frozenset({scope}))
    reads = await only.call("GET", "/api/v1/knowledge-bases")
    writes = await only.call("POST", "/api/v1/knowledge-bases", {"slug": scope[-4:], "name": "x"})
    assert (reads.status == 200, writes.status == 201) == (scope == "memory:read", scope == "memory:write")
