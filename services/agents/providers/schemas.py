"""Bodies of /api/v1/providers."""

from typing import Annotated, Any

import msgspec
from msgspec import Meta
from typing_extensions import TypedDict

from core.clock import rfc3339
from services.agents.providers.configured import ModelName, Name, PriceEntry
from services.agents.providers.model import Kind, Provider
from services.agents.providers.store import StoredProvider

MAX_BYTES = 64 << 10

Url = Annotated[
    str,
    Meta(
        min_length=9,
        max_length=500,
        description="https, public; the part before /chat/completions or /v1/messages.",
    ),
]
Key = Annotated[
    str, Meta(pattern=r"^[\x21-\x7e]{1,512}\Z", description="Stored encrypted and never shown again.")
]
Models = Annotated[
    tuple[ModelName, ...], Meta(max_length=200, description="What may be asked for; any where empty.")
]
Prices = Annotated[
    dict[ModelName, PriceEntry],
    Meta(max_length=200, description="For a million tokens; what a cost limit counts with."),
]


class NewProvider(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    name: Name
    kind: Kind = "openai"
    base_url: Url
    api_key: Key
    models: Models = ()
    prices: Prices = {}


class ProviderChange(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """What is left out stays. A new `base_url` needs the key again: an old one is sent nowhere new."""

    base_url: Url | None = None
    api_key: Key | None = None
    models: Models | None = None
    prices: Prices | None = None


class ProviderDocument(TypedDict):
    id: str
    object: str
    name: str
    kind: str
    base_url: str
    models: list[str]
    prices: dict[str, dict[str, str]]
    created_by: str
    created_at: str
    updated_at: str


class PlatformProvider(TypedDict):
    name: str
    kind: str
    models: list[str]


class ProviderList(TypedDict):
    object: str
    data: list[ProviderDocument]
    first_id: str | None
    last_id: str | None
    has_more: bool
    platform: list[PlatformProvider]


def document(stored: StoredProvider) -> ProviderDocument:
    """A provider as it may be shown: its key is not here."""
    return ProviderDocument(
        id=stored.id,
        object="provider",
        name=stored.name,
        kind=stored.kind,
        base_url=stored.base_url,
        models=list(stored.models),
        prices=stored.prices,
        created_by=stored.created_by,
        created_at=rfc3339(stored.created_at),
        updated_at=rfc3339(stored.updated_at),
    )


def platform(provider: Provider) -> PlatformProvider:
    return PlatformProvider(name=provider.name, kind=provider.kind, models=list(provider.models))


def stored_prices(prices: dict[str, PriceEntry]) -> dict[str, Any]:
    """As the column holds them."""
    found: dict[str, Any] = msgspec.to_builtins(prices)
    return found
