"""A library of documents on real servers: rows, sources, derived data and index."""

import asyncio
import hashlib
import io
import secrets
import zipfile
from collections.abc import Callable, Coroutine
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, TypeVar

from sqlalchemy import text

from assets.knowledge import stages, worklist
from assets.knowledge.worklist import Key
from core.database import Database
from core.embedding.api import EmbeddingModel
from core.embedding.hashing import HashModel
from core.ids import new_id
from core.objects import open_objects
from core.settings import DatabaseSettings, ObjectSettings, VectorSettings
from core.vectors import Vectors

T = TypeVar("T")
BASE: Final = "kb_00000000-0000-7000-8000-000000000001"


@dataclass
class Library:
    """One organisation with one knowledge base."""

    database: DatabaseSettings
    objects: ObjectSettings
    vectors: VectorSettings
    tenant: str
    model: EmbeddingModel

    @staticmethod
    async def make(
        database: DatabaseSettings,
        folder: Path,
        vectors: VectorSettings,
        objects: ObjectSettings | None = None,
    ) -> "Library":
        """Objects lie in `folder` where no other place is given."""
        objects = objects or ObjectSettings(objects_url=f"file://{folder}/objects")
        library = Library(database, objects, vectors, new_id("org"), HashModel())
        await library.sql(
            "insert into organisation (id, slug, name, plan) select :tenant, :slug, 'Library', min(code) from plan",
            slug=f"library-{secrets.token_hex(6)}",
        )
        await library.sql(
            "insert into knowledge_base (tenant_id, id, slug, name, created_by) values (:tenant, :base, 'kb', 'KB', 'me')",
            base=BASE,
        )
        async with open_objects(objects, database) as store:
            await store.ensure_bucket("knowledge", versioned=True)
        return library

    async def sql(self, statement: str, **values: Any) -> list[Any]:
        database = Database(self.database, role="system")
        try:
            async with database.writer() as connection:
                rows = await connection.execute(text(statement), {"tenant": self.tenant, **values})
                return list(rows) if rows.returns_rows else []
        finally:
            await database.close()

    async def upload(self, name: str, content: bytes, *, document: str = "", media_type: str = "") -> Key:
        """A new document, or the next version of one, queued."""
        if not document:
            document = new_id("doc")
            await self.sql(
                "insert into document (tenant_id, id, knowledge_base_id, name, created_by) "
                "values (:tenant, :id, :base, :name, 'me')", id=document, name=name, base=BASE,
            )  # fmt: skip
        ((version,),) = await self.sql(
            "update document set last_version = last_version + 1 where tenant_id = :tenant and id = :id "
            "returning last_version", id=document,
        )  # fmt: skip
        key = f"{self.tenant}/{document}/{version}"
        async with open_objects(self.objects, self.database) as store:
            info = await store.put("knowledge", key, content)
        await self.sql(
            "insert into document_version (tenant_id, document_id, version, media_type, size, sha256, object_key, "
            "object_version, state, created_by) values (:tenant, :id, :version, :media, :size, :sha, :key, :stored, "
            "'queued', 'me')", id=document, version=version, media=media_type, size=len(content),
            sha=hashlib.sha256(content).hexdigest(), key=key, stored=info.version,
        )  # fmt: skip
        return self.tenant, document, version

    async def state(self, key: Key) -> tuple[str, str]:
        """State and reason of a version."""
        ((state, reason),) = await self.sql(
            "select state, reason from document_version where tenant_id = :tenant and document_id = :id "
            "and version = :version", id=key[1], version=key[2],
        )  # fmt: skip
        return state, reason

    async def live(self, document: str) -> int | None:
        ((version,),) = await self.sql(
            "select live_version from document where tenant_id = :tenant and id = :id", id=document
        )
        return version if version is None else int(version)

    async def in_shop(self, work: Callable[[stages.Workshop], Coroutine[Any, Any, T]]) -> T:
        async with stages.workshop(self.database, self.objects, self.model) as shop:
            return await work(shop)

    async def run(self, *keys: Key) -> list[stages.Done]:
        """All four steps for these versions, as a run does them."""

        async def steps(shop: stages.Workshop) -> list[stages.Done]:
            index = Vectors(self.vectors)
            try:
                return [
                    await stages.read_texts(shop, list(keys)),
                    await stages.make_passages(shop, list(keys)),
                    await stages.make_vectors(shop, list(keys)),
                    await stages.put_into_index(shop, index, list(keys)),
                ]
            finally:
                index.close()

        return await self.in_shop(steps)

    async def due_now(self, key: Key) -> None:
        """Its pause is over."""
        await self.sql(
            "update document_version set next_attempt_at = null where tenant_id = :tenant and document_id = :id",
            id=key[1],
        )

    async def due(self) -> list[Key]:
        async def look(shop: stages.Workshop) -> list[worklist.Waiting]:
            async with shop.database.writer() as connection:
                return await worklist.due(connection)

        return [one.key for one in await self.in_shop(look) if one.key[0] == self.tenant]

    async def count(self, document: str, version: int | None = None) -> int:
        index = Vectors(self.vectors)
        try:
            index.ensure(self.model)
            return await asyncio.to_thread(index.count, self.tenant, document, version)
        finally:
            index.close()

    async def found(self, query: str) -> list[tuple[str, int, str, int, int]]:
        """(document, version, text, start, end) of the nearest passages, whichever versions they are of."""
        index = Vectors(self.vectors)
        try:
            index.ensure(self.model)
            hits = await asyncio.to_thread(
                index.dense, self.tenant, self.model.query(query).tolist(), 5, [BASE]
            )
            return [(hit.document, hit.version, hit.text, hit.start, hit.end) for hit in hits]
        finally:
            index.close()


def docx(*paragraphs: tuple[str, str], table: list[list[str]] | None = None) -> bytes:
    """(style, text) of each paragraph, then a table, then `The end.`"""
    from docx import Document  # noqa: PLC0415

    document = Document()
    for style, body in paragraphs:
        document.add_paragraph(body, style=style)
    if table:
        grid = document.add_table(len(table), len(table[0]))
        for row, cells in zip(grid.rows, table, strict=True):
            for cell, body in zip(row.cells, cells, strict=True):
                cell.text = body
    document.add_paragraph("The end.")
    target = io.BytesIO()
    document.save(target)
    return target.getvalue()


def bomb(megabytes: int = 400) -> bytes:
    """A DOCX of some hundred kilobytes that unpacks to hundreds of megabytes."""
    source = io.BytesIO(docx(("Normal", "x")))
    target = io.BytesIO()
    with zipfile.ZipFile(source) as old, zipfile.ZipFile(target, "w", zipfile.ZIP_DEFLATED) as new:
        for name in old.namelist():
            if name != "word/document.xml":
                new.writestr(name, old.read(name))
        with new.open("word/document.xml", "w", force_zip64=True) as file:
            piece = b" " * 1_000_000
            for _ in range(megabytes):
                file.write(piece)
    return target.getvalue()


def pdf(*pages: str) -> bytes:
    """A minimal PDF with a line of Helvetica on each page."""
    bodies = ["<< /Type /Catalog /Pages 2 0 R >>"]
    kids = " ".join(f"{4 + 2 * i} 0 R" for i in range(len(pages)))
    bodies += [
        f"<< /Type /Pages /Kids [{kids}] /Count {len(pages)} >>",
        "<< /Type /Font /Subtype /Type1 /BaseFont /Helvetica >>",
    ]
    for number, line in enumerate(pages):
        content = f"BT /F1 12 Tf 50 700 Td ({line}) Tj ET"
        bodies += [
            f"<< /Type /Page /Parent 2 0 R /MediaBox [0 0 612 792] /Contents {5 + 2 * number} 0 R "
            "/Resources << /Font << /F1 3 0 R >> >> >>",
            f"<< /Length {len(content)} >>\nstream\n{content}\nendstream",
        ]
    return assembled(bodies)


def scan() -> bytes:
    """A PDF whose only page is a picture."""
    content = "600 0 0 700 0 0 cm /I Do"
    return assembled(
        [
            "<< /Type /Catalog /Pages 2 0 R >>",
            "<< /Type /Pages /Kids [3 0 R] /Count 1 >>",
            "<< /Type /Page /Parent 2 0 R /MediaBox [0 0 612 792] /Contents 4 0 R "
            "/Resources << /XObject << /I 5 0 R >> >> >>",
            f"<< /Length {len(content)} >>\nstream\n{content}\nendstream",
            "<< /Type /XObject /Subtype /Image /Width 1 /Height 1 /ColorSpace /DeviceGray /BitsPerComponent 8 "
            "/Length 1 >>\nstream\nx\nendstream",
        ]
    )


def assembled(bodies: list[str], trailer: str = "") -> bytes:
    out, offsets = b"%PDF-1.7\n", []
    for number, body in enumerate(bodies, 1):
        offsets.append(len(out))
        out += f"{number} 0 obj\n{body}\nendobj\n".encode()
    start = len(out)
    table = "".join(f"{offset:010d} 00000 n \n" for offset in offsets)
    out += f"xref\n0 {len(bodies) + 1}\n0000000000 65535 f \n{table}".encode()
    return (
        out
        + f"trailer\n<< /Size {len(bodies) + 1} /Root 1 0 R {trailer} >>\nstartxref\n{start}\n%%EOF\n".encode()
    )


def encrypted_pdf() -> bytes:
    """A PDF that asks for a password: its keys fit none."""
    encryption = (
        f"/Encrypt << /Filter /Standard /V 1 /R 2 /O <{'41' * 32}> /U <{'42' * 32}> /P -4 >> "
        f"/ID [<{'00' * 16}> <{'00' * 16}>]"
    )
    return assembled(
        [
            "<< /Type /Catalog /Pages 2 0 R >>",
            "<< /Type /Pages /Kids [] /Count 0 >>",
        ],
        encryption,
    )
