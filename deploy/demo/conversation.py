"""Questions of the demo: asked through the gateway with the official OpenAI client, answered with citations."""

import asyncio
import hashlib
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Final

from openai import AsyncOpenAI

from deploy.client import ApiError, Client
from deploy.demo.follower import Followed, follow
from deploy.demo.run import DemoError

AGENT: Final = "handbook"
CUTS: Final = 2
"""Times that the following client loses its connection."""
MODEL: Final = "local/local-extractive"
INSTRUCTIONS: Final = (
    "Answer from the handbook. Search it with knowledge_search, quote it, and name the passage as [n]."
)


@dataclass(frozen=True, slots=True)
class Answer:
    """One question and what came back on two ways."""

    question: str
    text: str
    deltas: int
    citations: list[dict[str, Any]]
    verified: bool
    """Every quote equals the text of its document at its place, and there is at least one."""
    input_tokens: int
    output_tokens: int
    followed: Followed

    def as_dict(self) -> dict[str, Any]:
        return {
            "question": self.question,
            "answer": self.text,
            "deltas": self.deltas,
            "citations": self.citations,
            "citations_verified": self.verified,
        }


def ensure_agent(client: Client, base: str) -> str:
    """Slug of the tenant's agent that answers from knowledge base `base`."""
    wanted = {
        "model": MODEL,
        "instructions": INSTRUCTIONS,
        "tools": ["knowledge_search"],
        "knowledge_bases": [base],
    }
    try:
        client.post("/api/v1/agents", {"slug": AGENT, "name": "Handbook", **wanted})
    except ApiError as error:
        if error.status != 409:
            raise
    return AGENT


async def ask(client: Client, gateway_url: str, ws_url: str, key: str, question: str) -> Answer:
    """Ask as a program would, while a second client follows the same run.

    Raises:
        DemoError: the streams differ, or the run did not end well.
    """

    async def ticket() -> str:
        return str((await asyncio.to_thread(client.post, "/api/v1/ws/tickets", {}))["ticket"])

    text, deltas, usage = "", 0, None
    async with AsyncOpenAI(base_url=f"{gateway_url}/v1", api_key=key, timeout=120.0) as sdk:
        raw = await sdk.chat.completions.with_raw_response.create(
            model=f"agent:{AGENT}",
            messages=[{"role": "user", "content": question}],
            stream=True,
            stream_options={"include_usage": True},
        )
        run = raw.headers["x-run-id"]
        following = asyncio.create_task(follow(ticket, [ws_url], run, cuts=CUTS))
        async for chunk in raw.parse():
            if chunk.usage is not None:
                usage = chunk.usage
            if chunk.choices and chunk.choices[0].delta.content:
                text += chunk.choices[0].delta.content
                deltas += 1
        followed = await following
    if followed.ended != "run.completed" or followed.completed is None:
        raise DemoError(f"the run of {question!r} ended with {followed.ended}")
    _same(question, text, followed)
    citations = list(followed.completed.get("citations", []))
    verified = bool(citations) and all([await asyncio.to_thread(holds, client, each) for each in citations])
    return Answer(
        question, text, deltas, citations, verified,
        usage.prompt_tokens if usage else 0, usage.completion_tokens if usage else 0, followed,
    )  # fmt: skip


def _same(question: str, text: str, followed: Followed) -> None:
    promised = followed.completed["sha256"] if followed.completed else ""
    for name, found in (("SSE", text), ("WebSocket", followed.text)):
        if sha256(found) != promised:
            raise DemoError(f"the text of {question!r} over {name} is not what message.completed promises")
    if followed.cuts < CUTS:
        raise DemoError(
            f"the WebSocket client of {question!r} was cut {followed.cuts} times before the run ended, not {CUTS}"
        )
    if followed.missing:
        raise DemoError(f"the WebSocket client missed something of {question!r}: {followed.missing}")


def holds(client: Client, citation: dict[str, Any]) -> bool:
    """Whether the document's text at the citation's place is its quote."""
    path = f"/api/v1/documents/{citation['document']}/versions/{citation['version']}/text"
    found = client.get(path, start=str(citation["start"]), end=str(citation["end"]))
    return bool(citation["quote"]) and found["text"] == citation["quote"]


def passages(client: Client, query: str) -> list[str]:
    """Texts that the tenant's search finds."""
    found = client.post("/api/v1/search", {"query": query, "top_k": 50})
    return [str(each["text"]) for each in found["data"]]


def sha256(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()


async def ask_all(
    client: Client, gateway_url: str, ws_url: str, key: str, questions: list[str], tick: Callable[[int], None]
) -> list[Answer]:
    """One after the other."""
    answers = []
    for number, question in enumerate(questions, 1):
        answers.append(await ask(client, gateway_url, ws_url, key, question))
        tick(number)
    return answers
