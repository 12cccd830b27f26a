"""The calculator, and where quotes stand in passages."""

import asyncio

import pytest

from services.agents import citations
from services.agents.citations import claims
from services.agents.tools import Passage, ToolError
from services.agents.tools.calculator import CALCULATOR, calculate, shown
from tests.services.process import cpu_seconds


@pytest.mark.parametrize(
    ("expression", "value"),
    [
        ("(3 + 4) * 12.5", "87.5"), ("0.1 + 0.2", "0.3"), ("1,200 * 5%", "60"), ("2^10", "1024"), ("-2**2", "-4"),
        ("7 // 2", "3"), ("-7 % 3", "2"), ("10 ÷ 4", "2.5"), ("round(2.675, 2)", "2.68"), ("sqrt(2)", "1.414213562373095048801688724"),
        ("max(1, 2, 3) - min(4, 5)", "-1"), ("12345678901234567.89 + 0.01", "12345678901234567.9"), ("1e400 * 2", "2E+400"),
    ],
)  # fmt: skip
def test_sums_are_exact(expression: str, value: str) -> None:
    assert shown(calculate(expression)) == value


@pytest.mark.parametrize(
    "expression",
    [
        "__import__('os').system('true')", "().__class__", "open('x')", "lambda: 1", "[1][0]", "x", "True + 1", "'a' * 9",
        "9**9**9", "1 / 0", "0x1f", "1e99999", "99**999*99**999*99**999", "round(1, 999)", "(" * 100 + "1" + ")" * 100 + "+", "+".join("1" * 190),
        "max()", "abs(1, 2)", "1 +", "", "1j", "f'{1}'",
    ],
)  # fmt: skip
def test_what_is_no_sum_is_refused_at_once(expression: str) -> None:
    with pytest.raises(ToolError):
        calculate(expression)


def test_the_model_reads_a_plain_schema() -> None:
    assert CALCULATOR.schema["required"] == ["expression"]
    assert CALCULATOR.schema["additionalProperties"] is False
    assert asyncio.iscoroutinefunction(CALCULATOR.call)


@pytest.mark.parametrize(
    "answer",
    [
        "".join(f"Statement {number} of its own. [1]" for number in range(20_000)),
        f"Nothing new. [{','.join('1' * 20_000)}]",
        "Runs resume at once. " * 20_000 + "[1]",
        "word " * 80_000 + "[1][2]",
        "[" * 400_000,
    ],
    ids=["statements", "markers", "sentences", "words", "brackets"],
)
def test_an_answer_full_of_markers_is_looked_through_once_and_to_a_bound(
    answer: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    looked: list[int] = []
    longest = citations._longest

    def counted(statement: str, passage: str) -> tuple[int, int] | None:
        looked.append(len(statement))
        return longest(statement, passage)

    monkeypatch.setattr(citations, "_longest", counted)
    with cpu_seconds(20):
        assert len(claims(answer, PASSAGES)) <= citations.MAX_CITATIONS
    assert len(looked) <= 200


PASSAGES = {
    1: Passage(
        1,
        "doc_1",
        3,
        100,
        152,
        "Runs resume at once.\nNothing is\nlost on the way there.",
        name="a.md",
        page=2,
    ),
    2: Passage(2, "doc_2", 1, 0, 14, "发票在月末十天后定稿。后来不变。"),
}


@pytest.mark.parametrize(
    ("answer", "quotes"),
    [
        ("Nothing is lost on the way there. [1]", [(1, "Nothing is\nlost on the way there.")]),
        ("As it says: Runs resume at once. [1] And 发票在月末十天后定稿。 [2]", [(1, "Runs resume at once."), (2, "发票在月末十天后定稿。")]),
        ("In my own words, it goes on. [1]", [(1, PASSAGES[1].text)]),
        ("Runs resume at once. [1][2]", [(1, "Runs resume at once."), (2, PASSAGES[2].text)]),
        ("Runs resume at once. [1, 2]", [(1, "Runs resume at once."), (2, PASSAGES[2].text)]),
        ("Runs resume at once. [1] Runs resume at once. [1]", [(1, "Runs resume at once.")]),
        ("An array a[9] and a footnote [7].", []),
        ("[1] leads", [(1, PASSAGES[1].text)]),
    ],
)  # fmt: skip
def test_quotes_are_what_the_passage_says_there(answer: str, quotes: list[tuple[int, str]]) -> None:
    found = claims(answer, PASSAGES)
    assert [(one.marker, one.quote) for one in found] == quotes
    for one in found:
        passage = PASSAGES[one.marker]
        assert passage.text[one.start - passage.start : one.end - passage.start] == one.quote
        assert (one.document, one.version, one.page) == (passage.document, passage.version, passage.page)
