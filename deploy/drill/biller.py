"""Closes a service period and adjusts it: `python -m deploy.drill.biller START END TENANT…`, as billing does it.

Says `ready` when it begins and exits with 0 when nothing is left to issue; it may be killed at any moment and run
beside others.
"""

import asyncio
import sys
from collections.abc import Sequence
from datetime import datetime
from typing import Final

from core.database import Database
from core.invoices.archive import Archive
from core.invoices.issue import Invoices
from core.invoices.issuing import InvoiceError
from core.invoices.periods import hours
from core.objects import open_objects
from core.rating import ServicePeriod
from core.settings import DatabaseSettings, ObjectSettings

PATIENCE: Final = 20


def main() -> int:
    start, end, *tenants = sys.argv[1:]
    period = hours(datetime.fromisoformat(start), datetime.fromisoformat(end))
    sys.stdout.write("ready\n")
    sys.stdout.flush()
    asyncio.run(bill(period, tenants))
    return 0


async def bill(period: ServicePeriod, tenants: Sequence[str]) -> None:
    """Raises: InvoiceError, other than that somebody else was busy."""
    settings = DatabaseSettings()
    app, system = Database(settings, role="app"), Database(settings, role="system")
    try:
        async with open_objects(ObjectSettings(), settings) as objects:
            archive = Archive(objects, system)
            invoices = Invoices(app, archive)
            for tenant_id in tenants:
                await _insist(invoices, tenant_id, period)
            while await archive.copy():
                pass
    finally:
        await app.close()
        await system.close()


async def _insist(invoices: Invoices, tenant_id: str, period: ServicePeriod) -> None:
    for attempt in range(PATIENCE):
        try:
            await invoices.close(tenant_id, period, "drill")
            await invoices.adjust(tenant_id, "drill", period=period)
        except InvoiceError as error:
            if error.code != "busy" or attempt == PATIENCE - 1:
                raise
        else:
            return


if __name__ == "__main__":
    sys.exit(main())
