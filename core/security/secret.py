"""A value that does not show itself: not in logs, errors, JSON, pickles, nor in a debugger's print."""

import hmac
from typing import Any, Final, NoReturn, Self

REDACTED: Final = "[secret]"


class Secret:
    """Holds text that only `reveal()` gives away.

    Comparing takes the same time whatever differs. Not hashable, not iterable, without a dictionary.
    """

    __slots__ = ("_value",)

    def __init__(self, value: str) -> None:
        self._value = value

    def reveal(self) -> str:
        """The text itself, for the one call that needs it."""
        return self._value

    def __repr__(self) -> str:
        return REDACTED

    __str__ = __repr__

    def __format__(self, specification: str) -> str:
        return format(REDACTED, specification)

    def __bool__(self) -> bool:
        return bool(self._value)

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, Secret):
            return NotImplemented
        return hmac.compare_digest(self._value.encode(), other._value.encode())

    __hash__ = None  # type: ignore[assignment]

    def __copy__(self) -> Self:
        return self

    def __deepcopy__(self, memo: dict[int, Any]) -> Self:
        return self

    def __reduce__(self) -> tuple[type[str], tuple[str]]:
        # A pickle may end in a queue, a cache or a log handler's file.
        return (str, (REDACTED,))

    def __getstate__(self) -> NoReturn:
        raise TypeError("a Secret has no state to give away")
