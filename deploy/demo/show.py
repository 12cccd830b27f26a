"""The demo as a person sees it."""

from collections.abc import Mapping, Sequence
from typing import Any

from rich.console import Console
from rich.table import Table

from deploy.demo.conversation import Answer
from deploy.demo.library import Fate
from deploy.demo.oracle import Fates

MEANING = {
    "landed": "stand in the lake, good or bad",
    "counted": "are on the invoice",
    "duplicates": "same identity, same content",
    "quarantined": "same identity, other content; or too old, too new",
    "rejected": "unreadable or against the contract",
}


def conservation(console: Console, seen: Mapping[str, int], expected: Fates) -> None:
    """landed = counted + duplicates + quarantined + rejected, beside the oracle's figures."""
    table = Table(title="Every record has a fate", title_justify="left")
    for name, align in (
        ("fate", "left"),
        ("records", "right"),
        ("oracle", "right"),
        ("", "left"),
        ("they …", "left"),
    ):
        table.add_column(name, justify="right" if align == "right" else "left")
    for name, number in expected.as_dict().items():
        agrees = "[green]=[/green]" if seen.get(name) == number else "[red]≠[/red]"
        table.add_row(name, f"{seen.get(name, 0):,}", f"{number:,}", agrees, MEANING[name])
    console.print(table)


def invoice(console: Console, draft: Mapping[str, Any]) -> None:
    """Everything that the total is made of, with unrounded and rounded amounts, and what has no price."""
    table = Table(title=_draft_title(draft), title_justify="left")
    for name in ("meter", "quantity", "because", "unrounded", "amount"):
        table.add_column(name, justify="left" if name in {"meter", "because"} else "right")
    for line in draft["lines"]:
        period = line["explanation"]["period"]
        _charge(table, line, f" {period['start'][:10]}" if period else "")
    _unpriced(table, draft["unpriced"])
    for one in draft["adjustments"]:
        period = one["service_period"]
        table.add_section()
        # The heading has no amount of its own: a column adds up to the total.
        table.add_row(f"adjusts {one['adjusts']}", "", f"{period['start'][:10]} to {period['end'][:10]}")
        for line in one["lines"]:
            _charge(table, line)
    table.add_section()
    table.add_row("total", "", "", draft["unrounded"], draft["total"])
    console.print(table)


def _draft_title(draft: Mapping[str, Any]) -> str:
    """Usage has hours, so its period is shown to the minute; there is none without usage."""
    start, end = draft["period"]["start"], draft["period"]["end"]
    period = f"{start[:16]}Z to {end[:16]}Z" if start else ""
    return ", ".join(filter(None, (f"Draft invoice of {draft['tenant']}", draft["currency"], period)))


def issued(console: Console, document: Mapping[str, Any]) -> None:
    """A final invoice or an adjustment, with what each amount is made of."""
    period = document["service_period"]
    what = f"{document['object']} {document['number']} ({document['reason']}"
    adjusts = f", adjusts {document['adjusts']}" if document["adjusts"] else ""
    table = Table(title=f"{what}{adjusts}), {period['start']} to {period['end']}", title_justify="left")
    for name in ("meter", "quantity", "because", "unrounded", f"amount {document['currency'] or ''}"):
        table.add_column(name, justify="left" if name in {"meter", "because"} else "right")
    for line in document["lines"]:
        _charge(table, line)
    _unpriced(table, document["unpriced"])
    table.add_section()
    table.add_row("total", "", "", document["unrounded"], document["total"])
    console.print(table)


def _charge(table: Table, line: Mapping[str, Any], of: str = "") -> None:
    table.add_row(
        line["meter"] + of, line["quantity"], _because(line), line["amount_unrounded"], line["amount"]
    )


def _unpriced(table: Table, items: Sequence[Mapping[str, Any]]) -> None:
    for one in items:
        table.add_row(one["meter"], one["quantity"], "no price", "", "")


def _because(line: Mapping[str, Any]) -> str:
    """`15 × 10 + 1 × 5`, or for an adjustment both sides."""
    if line["explanation"] is not None:
        return _parts(line["explanation"])
    before, after = (
        _parts(line[side]["explanation"]) if line[side] else "nothing" for side in ("before", "after")
    )
    return f"{after} instead of {before}"


def _parts(explanation: Mapping[str, Any]) -> str:
    return " + ".join(
        f"{part['quantity']} × {part['unit_price']}" + (f" / {part['per']:,}" if part["per"] != 1 else "")
        for part in explanation["parts"]
    )


def snapshot(console: Console, path: str, query: str, unrounded: str, agrees: bool) -> None:
    """The analyst's figure beside the invoice's."""
    console.print(f"snapshot {path}", soft_wrap=True)
    console.print(f'  headrace snapshot query "{query}"', soft_wrap=True, highlight=False)
    verdict = (
        "[green]equals the invoice to the last digit[/green]"
        if agrees
        else "[red]differs from the invoice[/red]"
    )
    console.print(f"  {unrounded}  {verdict}")


def documents(console: Console, fates: Mapping[str, Fate]) -> None:
    """What became of each file."""
    table = Table(title="Documents", title_justify="left")
    for name in ("file", "state", "reason"):
        table.add_column(name)
    for name, fate in sorted(fates.items()):
        colour = {"indexed": "green", "failed": "red"}.get(fate.state, "yellow")
        table.add_row(name, f"[{colour}]{fate.state}[/{colour}]", fate.reason)
    console.print(table)


def answers(console: Console, given: Sequence[Answer]) -> None:
    """Each answer with its citations, and whether they stand."""
    for answer in given:
        console.print(f"  [bold]{answer.question}[/bold]", highlight=False)
        console.print(f"  {answer.text}", highlight=False, soft_wrap=True, markup=False)
        for citation in answer.citations:
            page = f", page {citation['page']}" if citation.get("page") else ""
            place = f"{citation.get('name') or citation['document']}{page}, {citation['start']} to {citation['end']}"
            verdict = "[green]stands there[/green]" if answer.verified else "[red]does not stand[/red]"
            console.print(f"    {place}: {verdict}", highlight=False, soft_wrap=True)
    cuts = sum(answer.followed.cuts for answer in given)
    console.print(f"  the same texts over SSE and over a WebSocket that was cut {cuts} times")
