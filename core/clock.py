"""Time as the platform writes it. Clocks trigger work, they never define it (law 11)."""

from datetime import UTC, datetime


def now() -> datetime:
    """The current instant, aware, in UTC."""
    return datetime.now(UTC)


def rfc3339(instant: datetime) -> str:
    """RFC 3339 with milliseconds and `Z`, the format of every API and log line.

    Raises:
        ValueError: for a naive datetime, whose meaning depends on the machine.
    """
    if instant.tzinfo is None:
        raise ValueError("a time without zone has no meaning; attach UTC or the sender's zone first")
    return instant.astimezone(UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")
