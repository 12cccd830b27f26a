"""Finds the provider of a model by name, and makes clients that retry nothing by themselves."""

import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from decimal import Decimal
from typing import Final

import httpx2
from pydantic_ai.models import Model

from core.database import Database, tenant
from core.security.fields import FieldCipher, Place
from core.security.secret import Secret
from core.settings import ProviderSettings, SecuritySettings, ServiceSettings
from services.agents.providers import store
from services.agents.providers.clients import chat_model
from services.agents.providers.closing import CLOSING
from services.agents.providers.configured import configured
from services.agents.providers.egress import Egress, GuardedTransport
from services.agents.providers.model import ModelPrice, Provider, ProviderError, Target
from services.agents.providers.store import StoredProvider

CACHE_SECONDS: Final = 2.0
"""A changed key is used by every instance after at most this."""


class Providers:
    """The platform's providers and, by tenant, its own. A tenant's name goes before the platform's."""

    def __init__(
        self,
        platform: dict[str, Provider],
        *,
        database: Database | None,
        cipher: FieldCipher,
        egress: Egress,
        http: httpx2.AsyncClient,
        guarded: httpx2.AsyncClient,
    ) -> None:
        self.platform = platform
        self.egress = egress
        self.cipher = cipher
        self._database = database
        self._http, self._guarded = http, guarded
        self._known: dict[str, tuple[float, dict[str, Provider]]] = {}

    async def resolve(self, tenant_id: str, name: str) -> Target:
        """The model of `provider/model`, or of a bare model name that exactly one provider lists first.

        Raises:
            ProviderError: `unknown_provider`, `unknown_model`.
        """
        own = await self._of(tenant_id)
        provider_name, slash, model = name.partition("/")
        provider = own.get(provider_name) or self.platform.get(provider_name)
        if slash and provider is not None:
            if provider.models and model not in provider.models:
                raise ProviderError(
                    "unknown_model",
                    f"The provider {provider_name} does not offer {model}; see GET /api/v1/providers.",
                )
            return Target(provider, model)
        # The whole text may be a model's name with a slash of its own.
        for candidate in (*own.values(), *self.platform.values()):
            if name in candidate.models:
                return Target(candidate, name)
        if slash:
            raise ProviderError(
                "unknown_provider", f"There is no provider {provider_name}; see GET /api/v1/providers."
            )
        raise ProviderError("unknown_model", f"No provider offers {name}; name it as `provider/model`.")

    async def models(self, tenant_id: str) -> list[Target]:
        """Every model that the tenant may name, its own first."""
        own = await self._of(tenant_id)
        everybody = {
            **{p.name: p for p in own.values()},
            **{n: p for n, p in self.platform.items() if n not in own},
        }
        return [Target(provider, model) for provider in everybody.values() for model in provider.models]

    def client(self, provider: Provider) -> httpx2.AsyncClient:
        """The HTTP client for a provider; a tenant's goes to public addresses only."""
        return self._guarded if provider.tenant_id else self._http

    async def chat_model(self, target: Target) -> Model:
        """The model for pydantic-ai; a failed request raises at once."""
        return await chat_model(target, self.client(target.provider))

    def forget(self, tenant_id: str) -> None:
        """Read the tenant's providers again at the next use: it changed them here."""
        self._known.pop(tenant_id, None)

    def place(self, tenant_id: str, provider_id: str) -> Place:
        """Where the key of a provider stands."""
        return Place(tenant=tenant_id, subject="", table="provider", column="api_key", row=provider_id)

    async def _of(self, tenant_id: str) -> dict[str, Provider]:
        if self._database is None:
            return {}
        now = time.monotonic()
        until, found = self._known.get(tenant_id, (0.0, {}))
        if now < until:
            return found
        with tenant(tenant_id):
            async with self._database.reader() as connection:
                stored = await store.everything(connection)
        found = {one.name: self._opened(tenant_id, one) for one in stored}
        if len(self._known) > 10_000:
            self._known.clear()
        self._known[tenant_id] = (now + CACHE_SECONDS, found)
        return found

    def _opened(self, tenant_id: str, stored: StoredProvider) -> Provider:
        key = self.cipher.decrypt(stored.api_key, self.place(tenant_id, stored.id))
        return Provider(
            name=stored.name,
            kind=stored.kind,
            base_url=stored.base_url,
            api_key=Secret(key.decode()),
            models=stored.models,
            prices={
                model: ModelPrice(**{part: Decimal(amount) for part, amount in price.items()})
                for model, price in stored.prices.items()
            },
            tenant_id=tenant_id,
            id=stored.id,
        )


@asynccontextmanager
async def open_providers(
    settings: ProviderSettings,
    services: ServiceSettings,
    security: SecuritySettings,
    database: Database | None,
) -> AsyncIterator[Providers]:
    """Providers with their connections, for one process. Without a database: the platform's only.

    Raises:
        ValueError: the settings name no usable providers.
    """
    patience = httpx2.Timeout(
        settings.provider_idle_seconds,
        connect=settings.provider_connect_seconds,
        pool=settings.provider_connect_seconds,
    )
    egress = Egress(settings.provider_hosts)
    limits = httpx2.Limits(max_connections=1000, max_keepalive_connections=50)
    async with (
        httpx2.AsyncClient(timeout=patience, limits=limits, event_hooks=CLOSING) as http,
        httpx2.AsyncClient(
            timeout=patience, transport=GuardedTransport(egress), trust_env=False, event_hooks=CLOSING
        ) as guarded,
    ):
        yield Providers(
            configured(settings, services),
            database=database,
            cipher=FieldCipher.from_settings(security),
            egress=egress,
            http=http,
            guarded=guarded,
        )
