"""Invoices of one organisation, as the tests of closing, adjusting and fixing prices use them."""

from datetime import UTC, datetime
from decimal import Decimal
from typing import Any

from core.database import Database
from core.settings import DatabaseSettings
from tests.services.billing.conftest import Caller, Reply, usage_event
from tests.services.billing.published import fates, publish

INPUT, OUTPUT = "llm.tokens.input", "llm.tokens.output"
NOON = datetime(2026, 3, 1, 12, tzinfo=UTC)
INVOICES, DRAFT = "/api/v1/billing/invoices", "/api/v1/billing/invoices/draft"
MARCH = {"period": "2026-03"}


class Book:
    """Invoices of one organisation, closed by the owner of the platform."""

    def __init__(
        self, owner: Caller, of: Caller, system: Database, database: DatabaseSettings, topic_id: str
    ) -> None:
        self.owner, self.of, self.database = owner, of, database
        self._system, self._topic_id = system, topic_id
        self._counted: list[Any] = []

    async def use(self, quantity: str, at: datetime = NOON, meter: str = INPUT, **dimensions: str) -> int:
        """Publish usage beside what is published; the lake version."""
        self._counted.append(
            usage_event(self.of.tenant, time=at, quantity=quantity, meter=meter, dimensions=dimensions)
        )
        return await publish(
            self._system, topic_id=self._topic_id, counted=self._counted, watermark={0: len(self._counted)},
            fates=[fates(self.of.tenant, counted=len(self._counted))],
        )  # fmt: skip

    async def close(self, **named: Any) -> Reply:
        return await self.owner.call("POST", INVOICES, params={"tenant": self.of.tenant}, json=named)

    async def adjust(self, **named: Any) -> Any:
        answer = await self.owner.call(
            "POST",
            "/api/v1/billing/adjustments",
            params={"tenant": self.of.tenant},
            json=named or {"period": "all"},
        )
        assert answer.status == 200, answer.json
        return answer.json["data"]

    async def raw(self, name: str, **headers: str) -> tuple[bytes, dict[str, str]]:
        """The body as it came."""
        async with self.of.http.get(
            f"{self.of.billing.address}{INVOICES}/{name}",
            headers={**self.of.billing.header(self.of.principal), **headers},
        ) as answer:
            assert answer.status == 200, await answer.text()
            return await answer.read(), {key.lower(): value for key, value in answer.headers.items()}

    async def numbers(self) -> list[str]:
        """Of all documents, in their order."""
        return [one["number"] for one in (await self.of.ask(INVOICES, order="asc", limit="100"))["data"]]

    async def total(self) -> Decimal:
        """What the customer pays: the sum of all documents."""
        listed = await self.of.ask(INVOICES, limit="100")
        assert not listed["has_more"]
        return sum((Decimal(one["total"]) for one in listed["data"]), Decimal(0))
