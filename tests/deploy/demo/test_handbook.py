"""The demo's own documents."""

import pypdfium2

from deploy.demo import handbook


def test_a_demo_that_runs_again_has_nothing_new_to_index() -> None:
    first, second = (handbook.documents("a") for _ in range(2))
    assert first == second
    assert b"CreationDate(D:00000000000000" in first[handbook.PDF]
    with pypdfium2.PdfDocument(first[handbook.PDF]) as document:
        assert "How to work with a Headrace installation" in document[0].get_textpage().get_text_range()
