"""`knowledge_search`: passages of the tenant's documents, numbered for citations."""

from typing import Annotated, Final

import msgspec
from msgspec import Meta

from services.agents.tools.memory import MemoryAwayError, MemoryClient
from services.agents.tools.model import Call, Output, Passage, Tool

NAME: Final = "knowledge_search"


class Arguments(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """A search."""

    query: Annotated[
        str, Meta(min_length=1, max_length=2000, description="What to look for, in the user's own words.")
    ]
    limit: Annotated[int, Meta(ge=1, le=20, description="How many passages.")] = 6


def knowledge_search(memory: MemoryClient) -> Tool:
    """The tool over this client. Without memory it finds nothing and says so: an answer without sources is
    better than none, as long as everybody sees that it is one."""

    async def call(asked: Call, arguments: Arguments) -> Output:
        try:
            found = await memory.search(
                asked.run, arguments.query, asked.run.spec.knowledge_bases, arguments.limit
            )
        except MemoryAwayError as error:
            content = {
                "passages": [],
                "unavailable": "The documents cannot be searched at the moment; say so in the answer.",
            }
            return Output(msgspec.json.encode(content).decode(), degraded=error.reason)
        passages = tuple(
            Passage(
                marker=marker,
                document=one.document,
                version=one.version,
                start=one.start,
                end=one.end,
                text=one.text,
                name=one.name,
                page=one.page or None,
            )
            for marker, one in enumerate(found, asked.first_marker)
        )
        shown = [
            {
                "marker": passage.marker,
                "document": passage.name,
                **({"page": passage.page} if passage.page else {}),
                **({"headings": list(one.headings)} if one.headings else {}),
                "text": passage.text,
            }
            for passage, one in zip(passages, found, strict=True)
        ]
        return Output(msgspec.json.encode({"passages": shown}).decode(), passages)

    return Tool(
        name=NAME,
        description="Searches the documents of this organisation. Quote what you use word for word and put the "
        "passage's marker in square brackets behind it, like this: [1].",
        arguments=Arguments,
        side_effect="pure",
        call=call,
        seconds=10.0,
    )
