"""Lists in the shape OpenAI's clients know: `?limit&after&before&order` → `{object, data, …}`.

Cursors are ids of items (UUIDv7 behind a prefix, so they sort by creation).
"""

from collections.abc import Mapping, Sequence
from typing import Annotated, Any, Final, Literal

from fastapi import Depends, Query
from pydantic import BaseModel, ConfigDict

DEFAULT_LIMIT: Final = 20
MAX_LIMIT: Final = 100

Cursor = Annotated[str, Query(max_length=128, pattern=r"^[A-Za-z0-9_.:-]*$")]


class Page(BaseModel):
    """Which part of a list is wanted. Read `limit + 1` rows: the extra one tells `has_more`."""

    model_config = ConfigDict(frozen=True)
    limit: int = DEFAULT_LIMIT
    after: str = ""
    before: str = ""
    order: Literal["asc", "desc"] = "desc"

    @property
    def fetch(self) -> int:
        """Rows to ask the database for."""
        return self.limit + 1


async def page(
    limit: Annotated[int, Query(ge=1, le=MAX_LIMIT, description="How many items.")] = DEFAULT_LIMIT,
    after: Annotated[Cursor, Query(description="Items behind the one with this id.")] = "",
    before: Annotated[Cursor, Query(description="Items in front of the one with this id.")] = "",
    order: Annotated[Literal["asc", "desc"], Query(description="By creation.")] = "desc",
) -> Page:
    return Page(limit=limit, after=after, before=before, order=order)


PageQuery = Annotated[Page, Depends(page)]
"""Parameter of a route: `async def keys(page: PageQuery)`."""


def listing(items: Sequence[Mapping[str, Any]], page: Page, *, id_field: str = "id") -> dict[str, Any]:
    """The list document for up to `page.fetch` items as read."""
    shown = list(items[: page.limit])
    return {
        "object": "list",
        "data": shown,
        "first_id": shown[0][id_field] if shown else None,
        "last_id": shown[-1][id_field] if shown else None,
        "has_more": len(items) > page.limit,
    }
