"""How many of a run's tokens were cached, and how many reasoning."""

from pathlib import Path

from alembic import op

revision = "0008"
down_revision = "0007"

SQL = Path(__file__).parents[1] / "sql" / revision


def upgrade() -> None:
    """Run the domain files in order. Forward only: a mistake is mended by the next revision."""
    cursor = op.get_bind().connection.cursor()
    for file in sorted(SQL.glob("*.sql")):
        cursor.execute(file.read_text())
