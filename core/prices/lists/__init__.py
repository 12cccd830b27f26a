"""Public price lists as prices of the book. To add a format, add a module with `read` and an entry here.

A list is read whole, as decimals, and says of each entry what it could not take and why: a price is
never guessed, and never silently left out.
"""

import hashlib
import json
from collections.abc import Callable, Mapping
from dataclasses import replace
from decimal import Decimal
from pathlib import Path
from types import MappingProxyType
from typing import Any, Final

from core.prices.book import PriceError
from core.prices.lists import genai, litellm
from core.prices.lists.entries import Entry, Listed, PriceList, Refused

FORMATS: Final[Mapping[str, Callable[[Any], PriceList]]] = MappingProxyType(
    {"litellm": litellm.read, "genai": genai.read}
)

__all__ = ["FORMATS", "Entry", "Listed", "PriceList", "Refused", "read_list"]


def read_list(path: Path, kind: str | None = None) -> PriceList:
    """A price list from its file; its format is told by its shape where none is named.

    Raises:
        PriceError: it cannot be read, or is no price list.
    """
    try:
        content = path.read_bytes()
        document = json.loads(content, parse_float=Decimal, parse_int=Decimal, parse_constant=_no_number)
    except (OSError, UnicodeDecodeError, ValueError, RecursionError) as error:
        raise PriceError(f"the price list {path} cannot be read: {error}") from error
    found = kind or ("genai" if isinstance(document, list) else "litellm")
    try:
        return replace(FORMATS[found](document), sha256=hashlib.sha256(content).hexdigest())
    except (KeyError, TypeError, AttributeError, IndexError) as error:
        raise PriceError(
            f"{path} is no price list of the format {found} ({type(error).__name__}: {error}); "
            f"known: {', '.join(FORMATS)}"
        ) from error


def _no_number(text: str) -> Decimal:
    raise ValueError(f"{text} is no price")
