"""What the database refuses is logged without the values it was given."""

import pytest
from sqlalchemy import text
from sqlalchemy.exc import DBAPIError

from core.database import Database


async def test_an_error_does_not_show_the_values_of_its_statement(system_database: Database) -> None:
    with pytest.raises(DBAPIError, match="division by zero") as caught:
        async with system_database.reader() as connection:
            await connection.execute(
                text("select 1 / 0, cast(:value as text)"), {"value": "a tenant's secret"}
            )
    assert "a tenant's secret" not in str(caught.value)
