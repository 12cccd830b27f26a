"""The second half of the demo: documents in, questions answered with citations, and a wall between tenants."""

import asyncio
import time
from pathlib import Path
from typing import Any, Final

from rich.console import Console

from deploy.client import Client, Operator
from deploy.demo import conversation, handbook, library, run, show
from deploy.demo.report import progress

FIRST, SECOND, OWN = "demo-handbook", "demo-neighbour", "demo-documents"
"""Two tenants with the same handbook but for its marker, and one for documents of your own."""
PATIENCE: Final = 180.0
"""Seconds without one more document having ended."""


async def answer_questions(
    console: Console, operator: Operator, gateway_url: str, ws_url: str, documents: Path | None
) -> dict[str, Any]:
    """Index the handbook for two tenants, ask its questions, and compare what came on every way.

    Args:
        documents: a folder whose files are indexed too; their fates are shown, nothing is asked.

    Raises:
        DemoError: a stream differs, a quote does not stand in its document, or a tenant saw another's.
    """
    console.print("[bold]5[/bold] the handbook becomes searchable, for two tenants with a marker each")
    fates, bases = {}, {}
    keys = {slug: operator.tenant_key(slug) for slug in (FIRST, SECOND)}
    with Client(gateway_url, keys[FIRST]) as first, Client(gateway_url, keys[SECOND]) as second:
        for slug, client in ((FIRST, first), (SECOND, second)):
            bases[slug] = library.knowledge_base(client, "handbook")
            files = list(handbook.documents(slug).items())
            fates[slug] = _index(console, client, bases[slug], files)
            conversation.ensure_agent(client, bases[slug])
        wrong = [name for each in fates.values() for name, fate in each.items() if fate.state != "indexed"]
        if wrong:
            raise run.DemoError(f"not indexed: {wrong}; {fates}")
        show.documents(console, fates[FIRST])

        console.print("[bold]6[/bold] its questions, asked with the OpenAI client; a WebSocket is cut twice")
        questions = handbook.questions()
        before = _tokens(first)
        answers = await _ask(console, first, gateway_url, ws_url, keys[FIRST], [q.text for q in questions])
        show.answers(console, answers)
        problems = _wrong(questions, answers)
        console.print("[bold]7[/bold] its usage, and the wall between the tenants")
        spent = sum(answer.input_tokens + answer.output_tokens for answer in answers)
        seconds = _await_tokens(first, before + spent)
        console.print(f"  {spent:,} tokens of these answers stood in the live quota after {seconds:.2f} s")
        problems += await _wall(first, second, gateway_url, ws_url, keys)
    states = {name: fate.state for name, fate in fates[FIRST].items()}
    if documents is not None:
        states |= _own(console, operator, gateway_url, documents)
    if problems:
        raise run.DemoError("; ".join(problems))
    console.print("  each tenant's answer holds its own marker, and no search finds the other's")
    return {
        "answers": [answer.as_dict() for answer in answers],
        "stream_sha256": {
            "sse": conversation.sha256("".join(answer.text for answer in answers)),
            "websocket": conversation.sha256("".join(answer.followed.text for answer in answers)),
        },
        "documents": states,
    }


def _index(
    console: Console, client: Client, base: str, files: list[tuple[str, bytes]]
) -> dict[str, library.Fate]:
    with progress(console) as bar:
        task = bar.add_task(f"uploading {len(files)} documents", total=len(files))
        documents = library.upload(client, base, files)
        return library.await_fates(
            client, documents, PATIENCE,
            lambda done: bar.update(task, completed=done, description=f"indexing: {done} of {len(files)}"),
        )  # fmt: skip


async def _ask(
    console: Console, client: Client, gateway_url: str, ws_url: str, key: str, questions: list[str]
) -> list[conversation.Answer]:
    with progress(console) as bar:
        task = bar.add_task("asking", total=len(questions))
        return await conversation.ask_all(
            client, gateway_url, ws_url, key, questions,
            lambda done: bar.update(task, completed=done, description=f"asking: {done} of {len(questions)}"),
        )  # fmt: skip


def _wrong(questions: list[handbook.Question], answers: list[conversation.Answer]) -> list[str]:
    problems = [f"{answer.question}: a citation does not stand" for answer in answers if not answer.verified]
    for question, answer in zip(questions, answers, strict=True):
        if question.holds not in answer.text:
            problems.append(f"{question.text}: expected {question.holds!r} in {answer.text!r}")
    return problems


async def _wall(
    first: Client, second: Client, gateway_url: str, ws_url: str, keys: dict[str, str]
) -> list[str]:
    problems = []
    for client, slug, other in ((first, FIRST, SECOND), (second, SECOND, FIRST)):
        own, foreign = handbook.marker(slug), handbook.marker(other)
        answer = await conversation.ask(client, gateway_url, ws_url, keys[slug], handbook.MARKER_QUESTION)
        found = await asyncio.to_thread(conversation.passages, client, foreign)
        if own not in answer.text:
            problems.append(f"{slug}: expected {own} in {answer.text!r}")
        if foreign in answer.text or any(foreign in text for text in found):
            problems.append(f"{slug} saw {foreign}")
    return problems


def _own(console: Console, operator: Operator, gateway_url: str, folder: Path) -> dict[str, str]:
    files = library.folder(folder)
    console.print(f"[bold]8[/bold] {len(files)} documents of {folder}")
    with Client(gateway_url, operator.tenant_key(OWN)) as client:
        fates = _index(console, client, library.knowledge_base(client, "documents"), files)
    show.documents(console, fates)
    return {name: fate.state for name, fate in fates.items()}


def _tokens(client: Client) -> int:
    usage = client.get("/api/v1/usage")
    return sum(int(run.quantity(usage, f"llm.tokens.{kind}")) for kind in ("input", "output"))


def _await_tokens(client: Client, wanted: int) -> float:
    """Seconds until the live usage shows that many tokens. Raises: DemoError after a minute."""
    begin = time.monotonic()
    while (found := _tokens(client)) < wanted:
        if time.monotonic() - begin > 60:
            raise run.DemoError(f"live usage shows {found} tokens, the answers used {wanted}")
        time.sleep(0.05)
    return time.monotonic() - begin
