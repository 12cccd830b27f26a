"""What a provider is, and what a call of one of its models needs."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from decimal import Decimal
from typing import Literal

from core.security.secret import Secret

Kind = Literal["openai", "anthropic"]


class ProviderError(Exception):
    """A model cannot be called as it is named or configured.

    `code` is stable: `unknown_provider`, `unknown_model`, `provider_refused`.
    """

    def __init__(self, code: str, message: str) -> None:
        super().__init__(message)
        self.code = code
        self.message = message


@dataclass(frozen=True, slots=True)
class ModelPrice:
    """For a million tokens, in the price book's currency."""

    input: Decimal
    output: Decimal
    cached: Decimal | None = None
    """As `input` where None."""

    def cost(self, fresh: int, cached: int, output: int) -> Decimal:
        """Price of one call: input tokens that were not cached, those that were, and output tokens."""
        rate = self.input if self.cached is None else self.cached
        return (self.input * fresh + rate * cached + self.output * output) / 1_000_000


@dataclass(frozen=True, slots=True)
class Provider:
    """A place where models answer."""

    name: str
    kind: Kind
    base_url: str
    """Without a slash at the end; `/chat/completions` or `/v1/messages` is added to it."""
    api_key: Secret
    models: tuple[str, ...]
    """Names it may be asked for; where empty any, and none is listed."""
    prices: Mapping[str, ModelPrice] = field(default_factory=dict)
    tenant_id: str = ""
    """Whose it is; empty for the platform's, which every tenant may use."""
    id: str = ""


@dataclass(frozen=True, slots=True)
class Target:
    """One model of one provider."""

    provider: Provider
    model: str
    """As the provider calls it."""

    @property
    def name(self) -> str:
        return f"{self.provider.name}/{self.model}"

    @property
    def price(self) -> ModelPrice | None:
        return self.provider.prices.get(self.model)
