"""Prices: the book and its models (pure), the file they are declared in, the append-only table they are
recorded in."""

from core.prices.book import EVERYBODY, FLAT, Price, PriceBook, PriceError, Tier, books, in_force
from core.prices.file import DEFAULT_FILE, read_file
from core.prices.models import MODELS, Part, is_additive
from core.prices.table import Books, read_prices, record

__all__ = [
    "DEFAULT_FILE",
    "EVERYBODY",
    "FLAT",
    "MODELS",
    "Books",
    "Part",
    "Price",
    "PriceBook",
    "PriceError",
    "Tier",
    "books",
    "in_force",
    "is_additive",
    "read_file",
    "read_prices",
    "record",
]
