"""The platform's providers, as its settings name them."""

import tomllib
from decimal import Decimal
from typing import Annotated

import msgspec
from msgspec import Meta

from core.security.secret import Secret
from core.settings import ProviderSettings, ServiceSettings
from services.agents.providers.model import Kind, ModelPrice, Provider

LOCAL = "local"
LOCAL_MODELS = ("local-extractive", "multilingual-e5-small")

Name = Annotated[
    str,
    Meta(pattern=r"^[a-z0-9][a-z0-9_-]{0,62}\Z", description="Stands before the slash in `provider/model`."),
]
ModelName = Annotated[str, Meta(pattern=r"^[\x21-\x7e]{1,128}\Z")]
Amount = Annotated[str, Meta(pattern=r"^[0-9]{1,9}(\.[0-9]{1,9})?\Z", description="Decimal as text.")]


class PriceEntry(msgspec.Struct, frozen=True, forbid_unknown_fields=True, omit_defaults=True):
    """For a million tokens."""

    input: Amount
    output: Amount
    cached: Amount | None = None

    def price(self) -> ModelPrice:
        return ModelPrice(
            Decimal(self.input), Decimal(self.output), None if self.cached is None else Decimal(self.cached)
        )


class ProviderEntry(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """One provider in HEADRACE_PROVIDERS or in the file."""

    name: Name
    base_url: str
    api_key: str = ""
    kind: Kind = "openai"
    models: tuple[ModelName, ...] = ()
    prices: dict[ModelName, PriceEntry] = {}


class _File(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    provider: list[ProviderEntry]


def configured(settings: ProviderSettings, services: ServiceSettings) -> dict[str, Provider]:
    """By name; `local` is always among them.

    Raises:
        ValueError: the setting or the file cannot be read, or names a provider twice. Keys are not quoted.
    """
    entries: list[ProviderEntry] = []
    try:
        if settings.providers is not None and settings.providers.get_secret_value():
            entries += msgspec.json.decode(settings.providers.get_secret_value(), type=list[ProviderEntry])
    except msgspec.MsgspecError as error:
        raise ValueError(f"HEADRACE_PROVIDERS: {error}") from None
    if settings.providers_file is not None:
        try:
            document = tomllib.loads(settings.providers_file.read_text("utf-8"))
            entries += msgspec.convert(document, _File).provider
        except (OSError, tomllib.TOMLDecodeError, msgspec.ValidationError) as error:
            raise ValueError(f"HEADRACE_PROVIDERS_FILE {settings.providers_file}: {error}") from None
    found = {LOCAL: _local(services)}
    for entry in entries:
        if entry.name in found:
            raise ValueError(f"HEADRACE_PROVIDERS: {entry.name!r} is named twice (`local` is built in)")
        found[entry.name] = Provider(
            name=entry.name,
            kind=entry.kind,
            base_url=entry.base_url.rstrip("/"),
            api_key=Secret(entry.api_key),
            models=entry.models,
            prices={model: one.price() for model, one in entry.prices.items()},
        )
    return found


def _local(services: ServiceSettings) -> Provider:
    return Provider(
        name=LOCAL,
        kind="openai",
        base_url=f"{services.extractive_url}/v1",
        api_key=Secret("local"),
        models=LOCAL_MODELS,
        prices={model: ModelPrice(Decimal(0), Decimal(0)) for model in LOCAL_MODELS},
    )
