"""The pages of traces, drawn from answers as the API gives them."""

from typing import Any

import pytest

from services.billing.trace.documents import State
from services.billing.trace.events import DETAILS
from services.web.pages import LANGUAGES, environment

EVENT = {
    "object": "usage_event", "place": "1:2:3", "source": "crm/<eu>", "id": "a&b", "kind": "usage",
    "time": "2026-03-01T12:00:00.000000Z", "received": "2026-03-01T12:00:01.000000Z", "meter": "llm.tokens.input",
    "quantity": "5", "dimensions": {"model": "m"}, "subject": "",
    "coordinates": {"topic": "usage.records", "topic_id": "t", "partition": 2, "offset": 3, "slice": 1, "generation": 1,
                    "object": "part-1.parquet"},
}  # fmt: skip
LINE = {"invoice": "inv_1", "number": "INV-000001", "line": 2, "reason": "service_period", "meter": "llm.tokens.input",
        "dimensions": {"model": "m"}, "currency": "USD"}  # fmt: skip
AMOUNTS = {"quantity": "5", "amount_unrounded": "0.5", "amount": "0.50"}


def drawn(template: str, language: str, **values: Any) -> str:
    found = environment.get_template(template)
    context = found.new_context({"t": LANGUAGES[language], **values})
    return "".join(found.blocks["main"](context))


@pytest.mark.parametrize("language", LANGUAGES)
@pytest.mark.parametrize("verified", [True, False])
def test_a_line_shows_its_events_and_whether_they_come_to_it(language: str, verified: bool) -> None:
    proof = {"verified": verified, "reason": None if verified else "differs", "events": 1, "charged": AMOUNTS,
             "recomputed": AMOUNTS if verified else None}  # fmt: skip
    shown = drawn("line.html", language, line=LINE, proof=proof, events=[EVENT], after="1:2:3")
    assert LANGUAGES[language]["line_verified" if verified else "line_differs"] in shown
    assert 'href="/trace?source=crm/%3Ceu%3E&amp;id=a%26b"' in shown
    assert "<eu>" not in shown
    assert 'href="?after=1:2:3"' in shown


@pytest.mark.parametrize("language", LANGUAGES)
@pytest.mark.parametrize("state", DETAILS)
def test_every_state_of_an_event_has_words(language: str, state: State) -> None:
    on = [{**LINE, "effect": effect, "amount": "0.50"} for effect in ("charged", "repriced", "taken_back")]
    lost = {"line": None, "effect": "draft", "amount": None, "number": None}
    trace = {"state": state, "code": "conflict", "lines": [*on, LINE | lost], "event": EVENT, "other": None}
    shown = drawn("trace.html", language, source="crm", id="x", found=trace, unknown=False)
    assert LANGUAGES[language][f"trace_{state}"] in shown
    assert shown.count('href="/invoices/INV-000001/lines/2"') == 3
    assert "part-1.parquet" in shown


@pytest.mark.parametrize("language", LANGUAGES)
def test_an_event_that_nobody_knows_is_said_to_be_unknown(language: str) -> None:
    shown = drawn("trace.html", language, source="<b>", id="x", found=None, unknown=True)
    assert LANGUAGES[language]["trace_unknown"] in shown
    assert "<b>" not in shown
