"""Providers of language models: the platform's from its settings, a tenant's own from the database.

async with open_providers(ProviderSettings(), ServiceSettings(), SecuritySettings(), database) as providers:
    target = await providers.resolve("org_…", "local/local-extractive")
"""

from services.agents.providers.model import Kind, ModelPrice, Provider, ProviderError, Target
from services.agents.providers.registry import Providers, open_providers

__all__ = ["Kind", "ModelPrice", "Provider", "ProviderError", "Providers", "Target", "open_providers"]
