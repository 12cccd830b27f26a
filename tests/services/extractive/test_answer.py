"""What the offline server answers, and that it is the same each time."""

import json

import pytest

from services.extractive.answer import DESCRIPTION, Message, ToolCall, pieces, reply
from services.extractive.language import NOTHING_FOUND, language_of
from services.extractive.sentences import Passage, best, split
from tests.services.process import cpu_seconds

BOTH = frozenset({"knowledge_search", "calculator"})
NONE: frozenset[str] = frozenset()


def asked(question: str) -> list[Message]:
    return [Message("system", "Be brief."), Message("user", question)]


def searched(question: str, *texts: str) -> list[Message]:
    """The question, the search and its result."""
    call = ToolCall("call_1", "knowledge_search", json.dumps({"query": question}))
    passages = [{"marker": marker, "text": text} for marker, text in enumerate(texts, 1)]
    result = Message("tool", json.dumps({"passages": passages}), call_id="call_1")
    return [*asked(question), Message("assistant", calls=(call,)), result]


def test_it_searches_with_the_question_first() -> None:
    (call,) = reply(asked("How do runs resume?"), BOTH).calls
    assert (call.name, json.loads(call.arguments)) == ("knowledge_search", {"query": "How do runs resume?"})
    assert reply(asked("How do runs resume?"), BOTH).calls == (call,)
    assert reply(asked("How do runs end?"), BOTH).calls[0].id != call.id


def test_it_quotes_the_best_sentences_with_their_markers() -> None:
    answer = reply(
        searched(
            "When does an invoice become final?",
            "Usage is counted by the hour. Nobody likes waiting.",
            "# Invoices\n\nAn invoice becomes final\nten days after its month. It never changes afterwards.",
        ),
        BOTH,
    )
    assert answer.text.startswith("An invoice becomes final ten days after its month. [2]")
    assert "Nobody likes" not in answer.text


def test_chinese_is_quoted_in_chinese() -> None:
    answer = reply(
        searched("发票什么时候定稿？", "用量按小时统计。", "发票在月末十天后定稿。之后不会再改变。"), BOTH
    )
    assert answer.text == "发票在月末十天后定稿。 [2]"


def test_a_question_in_another_language_than_the_passages_gets_the_first_of_them() -> None:
    answer = reply(searched("When is it final?", "发票在月末十天后定稿。之后不会再改变。"), BOTH)
    assert answer.text == "发票在月末十天后定稿。 [1]"


@pytest.mark.parametrize(
    ("question", "language"),
    [
        ("Where is the key?", "en"), ("钥匙在哪里？", "zh"), ("鍵はどこですか", "ja"), ("열쇠는 어디에 있나요", "ko"),
        ("Где ключ?", "ru"), ("Wo ist der Schlüssel?", "de"), ("Où est la clé ?", "fr"), ("¿Dónde está la llave?", "es"),
        ("", "en"), ("42", "en"),
    ],
)  # fmt: skip
def test_without_passages_it_says_so_in_the_language_of_the_question(question: str, language: str) -> None:
    assert language_of(question) == language
    assert reply(searched(question), BOTH).text == NOTHING_FOUND[language]
    assert reply(asked(question), NONE).text == NOTHING_FOUND[language]
    assert "local-extractive" in NOTHING_FOUND[language]


@pytest.mark.parametrize(
    ("question", "expression"),
    [
        ("What is (3 + 4) * 12.5?", "(3 + 4) * 12.5"),
        ("1,200 × 5% 是多少？", "1,200 × 5%"),
        ("compute 2^10 please", "2^10"),
        ("-3 - 4?", "-3 - 4"),
    ],
)
def test_sums_go_to_the_calculator(question: str, expression: str) -> None:
    (call,) = reply(asked(question), BOTH).calls
    assert (call.name, json.loads(call.arguments)) == ("calculator", {"expression": expression})
    result = Message("tool", json.dumps({"expression": expression, "value": "7"}), call_id=call.id)
    answer = reply([*asked(question), Message("assistant", calls=(call,)), result], BOTH)
    assert answer.text == f"{expression} = 7"
    assert reply(asked(question), NONE).calls == ()


def test_dates_and_versions_are_no_sums() -> None:
    for question in ("What happened in 2026?", "Is version 3.11 supported?", "List 3 things"):
        assert reply(asked(question), BOTH).calls[0].name == "knowledge_search"


def test_what_was_found_for_an_earlier_question_is_not_an_answer_to_the_next() -> None:
    earlier = [*searched("How do runs resume?", "Runs resume by checkpoint."), Message("assistant", "… [1]")]
    (call,) = reply([*earlier, Message("user", "And invoices?")], BOTH).calls
    assert json.loads(call.arguments) == {"query": "And invoices?"}


@pytest.mark.parametrize("content", ["", "null", "[]", '{"passages": 1}', '{"passages": [{}]}', "plain text"])
def test_a_result_that_is_no_result_is_nothing_found(content: str) -> None:
    messages = searched("How do runs resume?")
    messages[-1] = Message("tool", content, call_id="call_1")
    assert reply(messages, BOTH).text == NOTHING_FOUND["en"]


def test_sentences_stand_in_their_text() -> None:
    text = "# Title\n\n- One thing. Another\n  thing!\n- 第三。第四？\n\nNo end"
    found = split(text)
    assert found == ["Title", "One thing.", "Another thing!", "第三。", "第四？", "No end"]
    plain = " ".join(text.split())
    assert all(sentence in plain for sentence in found)


def test_equal_sentences_are_quoted_once() -> None:
    found = best("what is blue", [Passage(1, "The sky is blue."), Passage(2, "The sky is blue.")])
    assert [(one.marker, one.text) for one in found] == [(1, "The sky is blue.")]


def test_pieces_join_to_the_text() -> None:
    for text in ("Two words  and\nmore.", "中文和 English 混合。", "", " ", "a"):
        assert "".join(pieces(text)) == text
    assert len(pieces("中文字")) == 3


def test_it_says_what_it_is() -> None:
    assert "no text of its own" in DESCRIPTION


HOSTILE = {
    "brackets": "(" * 100_000,
    "spaces": "1" + " " * 100_000 + "x",
    "digits": "1," * 50_000 + "x",
    "dashes": "1" + "-" * 100_000,
    "numbers": "1 " * 50_000,
    "stops": "." * 100_000 + "x",
    "closers": "a." + ")" * 100_000 + "x",
    "lists": "- " * 50_000 + "x",
    "lines": "\n \t" * 50_000 + "x",
}


@pytest.mark.parametrize("text", HOSTILE.values(), ids=HOSTILE)
def test_its_work_grows_with_the_text_and_not_with_its_square(text: str) -> None:
    """Ten seconds of CPU are a hundred times what is needed; the square of it would be hours."""
    with cpu_seconds(10):
        reply(asked(text), BOTH)
        reply(searched("What stops?", text), frozenset({"knowledge_search"}))
        pieces(text)


@pytest.mark.parametrize(
    "content",
    [
        '{"passages": [{"marker": 1e400, "text": "An answer stands here."}]}',
        '{"passages": [{"marker": -1, "text": "An answer stands here."}]}',
        '{"passages": [{"marker": 123456789, "text": "An answer stands here."}]}',
        '{"passages": [{"marker": 1, "text": 7}]}',
        '{"passages": ' + "[" * 5_000,
        "[]",
    ],
)
def test_a_result_that_is_none_of_ours_is_no_passage(content: str) -> None:
    messages = [*searched("Where does an answer stand?")[:-1], Message("tool", content, call_id="call_1")]
    assert reply(messages, BOTH).text == NOTHING_FOUND["en"]
