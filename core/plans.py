"""What a plan allows beside its row in the database: tokens of models a minute.

limit = tokens_per_minute(principal.plan, principal.requests_per_minute)
"""

from collections.abc import Mapping
from types import MappingProxyType
from typing import Final

TOKENS_PER_MINUTE: Mapping[str, int] = MappingProxyType(
    {"free": 200_000, "team": 2_000_000, "enterprise": 20_000_000}
)
TOKENS_PER_REQUEST: Final = 200
"""Of a plan that is not listed: so many tokens a minute for each request a minute."""


def tokens_per_minute(plan: str, requests_per_minute: int) -> int:
    """Input and output tokens that an organisation may use in any minute."""
    return TOKENS_PER_MINUTE.get(plan) or max(1, requests_per_minute) * TOKENS_PER_REQUEST
