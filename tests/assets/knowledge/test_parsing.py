"""Files of every kind through the wall: text with its structure, or a reason, within bounds."""

import io
import zipfile
from pathlib import Path

import pytest

from assets.knowledge.parsers.extract import HEADING, TABLE, Extract, RefusedError
from assets.knowledge.parsing import ParserDiedError, parse
from tests.assets.knowledge.library import bomb, docx, pdf
from tests.real_data import real_data

DOCUMENTS = real_data("docs")


def read(folder: Path, name: str, content: bytes, media_type: str = "") -> Extract:
    path = folder / "source"
    path.write_bytes(content)
    return parse(path, name, media_type)


def test_docx_keeps_the_order_of_paragraphs_and_tables(tmp_path: Path) -> None:
    content = docx(("Heading 1", "Gates"), ("Normal", "Before."), table=[["Gate", "Width"], ["East", "3 m"]])
    found = read(tmp_path, "a.docx", content)
    assert found.text == "Gates\n\nBefore.\n\nGate | Width\nEast | 3 m\n\nThe end."
    assert [(block.kind, block.level) for block in found.blocks if block.kind in {HEADING, TABLE}] == [
        (HEADING, 1),
        (TABLE, 0),
    ]


def test_pdf_knows_its_pages(tmp_path: Path) -> None:
    found = read(tmp_path, "a.pdf", pdf("First page.", "Second page."))
    assert found.pages == 2
    assert [(found.text[b.start : b.end], b.page) for b in found.blocks] == [
        ("First page.", 1),
        ("Second page.", 2),
    ]


def test_html_is_what_a_reader_sees(tmp_path: Path) -> None:
    page = (
        b"<!doctype html><title>T</title><script>alert(1)</script><style>p{}</style><h1>Gates</h1>"
        b"<p>One <b>bold</b> word.<ul><li>first<li>second</ul><table><tr><td>a<td>b</table>"
    )
    found = read(tmp_path, "a", page)
    assert found.text == "Gates\n\nOne bold word.\n\n- first\n\n- second\n\na | b"


def test_markdown_by_its_structure(tmp_path: Path) -> None:
    source = b"---\ntitle: x\n---\n# Gates\n\nTwo\nlines with `code`.\n\n1. first\n\n| a | b |\n|---|---|\n| c | d |\n\n```\n  code\n```\n"
    found = read(tmp_path, "a.md", source)
    assert found.text == "Gates\n\nTwo\nlines with code.\n\n1. first\n\na | b\nc | d\n\n  code"
    assert found.blocks[0].kind == HEADING


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16", "gb18030"])
def test_text_in_any_encoding(tmp_path: Path, encoding: str) -> None:
    body = "冬天到来之前，必须关闭水渠的闸门，否则冰会把它压坏。春天再把它打开。"
    assert read(tmp_path, "a.txt", body.encode(encoding)).text == body


def test_a_bomb_is_refused_before_it_unpacks(tmp_path: Path) -> None:
    with pytest.raises(RefusedError, match="would unpack to 400 MB"):
        read(tmp_path, "a.docx", bomb())


def test_a_reader_that_eats_memory_or_time_ends_alone(tmp_path: Path) -> None:
    # Under the bound of what may be unpacked, and a tree of more than the process may hold.
    target = io.BytesIO()
    source = io.BytesIO(docx(("Normal", "x")))
    with (
        zipfile.ZipFile(source) as old,
        zipfile.ZipFile(target, "w", zipfile.ZIP_DEFLATED, compresslevel=1) as new,
    ):
        for name in old.namelist():
            if name != "word/document.xml":
                new.writestr(name, old.read(name))
        with new.open("word/document.xml", "w") as file:
            file.write(
                b'<w:document xmlns:w="http://schemas.openxmlformats.org/wordprocessingml/2006/main"><w:body>'
            )
            for _ in range(250):
                file.write(b"<w:p/>" * 166_000)
            file.write(b"</w:body></w:document>")
    with pytest.raises((ParserDiedError, RefusedError), match=r"memory|ended by|failed|damaged"):
        read(tmp_path, "a.docx", target.getvalue())


def test_a_reader_that_takes_too_long_is_ended(tmp_path: Path) -> None:
    path = tmp_path / "source"
    path.write_bytes(pdf("x"))
    with pytest.raises(ParserDiedError, match="longer than 0 s"):
        parse(path, "a.pdf", "", seconds=0.001)


if DOCUMENTS is not None:

    def test_every_real_document_has_text_or_a_reason(tmp_path: Path) -> None:
        assert DOCUMENTS is not None
        found: dict[str, str] = {}
        for path in sorted(DOCUMENTS.iterdir()):
            try:
                extract = parse(path, path.name, "")
                assert any(map(str.isalnum, extract.text))
                assert all(
                    0 <= block.start < block.end <= len(extract.text) and block.page <= extract.pages
                    for block in extract.blocks
                )
                assert "base64" not in extract.text
                found[path.name] = "text"
            except RefusedError as error:
                found[path.name] = error.state if str(error) else "without a reason"
        assert set(found.values()) == {"text", "failed", "needs_ocr"}
        states = list(found.values())
        assert states.count("text") >= 55
        assert found["docling__ocr_test_rotated_90.pdf"] == "needs_ocr"
        assert found["pypdf__r6-user-password.pdf"] == "failed"
        assert found["pypdf__r5-empty-password.pdf"] == "text"
        assert found["tika__protected_upper_case.docx"] == "failed"
        assert found["unstructured__empty.txt"] == "failed"
        assert found["zhpdf_pdf.js__issue2128r.pdf"] == "text"
