"""An issued document computed again from what it names: usage of a generation up to a slice, prices as of a
revision, and this code. Pure; whoever calls brings the usage, read from the landed rows themselves.

A line is named by its key (`core.invoices.difference.Key`), so usage of one meter is enough for its lines.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

from core.invoices import difference
from core.invoices.difference import Key, key_of
from core.invoices.document import CODE_VERSION, Document, Line, period_of
from core.invoices.store import Piece
from core.prices import PriceBook
from core.rating import rate


class OtherCodeError(Exception):
    """The document was rated by another version of the rating code than this one."""


@dataclass(frozen=True, slots=True)
class Compared:
    """A line as it was issued and as it computes now; either is None where there is none of its key."""

    key: Key
    issued: Line | None
    again: Line | None

    @property
    def equal(self) -> bool:
        """To the last digit, explanations included; only the line's number may differ."""
        return (
            self.issued is not None
            and self.again is not None
            and _without_id(self.issued) == _without_id(self.again)
        )


def recompute(
    document: Document, earlier: Sequence[Document], pieces: Iterable[Piece], book: PriceBook
) -> list[Line]:
    """The lines that the document should have.

    Args:
        earlier: documents of the same service period with a lower number, in their order.
        pieces: usage of the period as of the document's generation and slice, added up between the edges of
            every recorded price.
        book: as it is now; it answers as of any revision.

    Raises:
        OtherCodeError
        core.rating.MixedCurrencyError
    """
    if document.code_version != CODE_VERSION:
        raise OtherCodeError(
            f"{document.number} was rated by code version {document.code_version}, this is version {CODE_VERSION}; verify "
            "it with the release that issued it"
        )
    usage, period = [piece.usage for piece in pieces], period_of(document)
    rated = rate(usage, book.as_of(document.price_revision), period)
    if document.reason == "service_period":
        return difference.lines(rated, document.id)
    if document.reason == "late_usage":
        before = difference.charged(earlier)
    else:
        before = difference.charges(rate(usage, book.as_of(revision_before(earlier)), period))
    return difference.difference(before, difference.charges(rated), document.id)


def revision_before(earlier: Sequence[Document]) -> int:
    """What a price fix behind these documents compares with."""
    return max(one.price_revision for one in earlier)


def compare(issued: Iterable[Line], again: Iterable[Line]) -> list[Compared]:
    """Line by line, by key."""
    was: Mapping[Key, Line] = {key_of(line): line for line in issued}
    now: Mapping[Key, Line] = {key_of(line): line for line in again}
    return [Compared(key, was.get(key), now.get(key)) for key in sorted({*was, *now})]


def behind_line(
    document: Document, earlier: Sequence[Document], key: Key, pieces: Iterable[Piece], book: PriceBook
) -> list[Piece]:
    """The pieces whose price is the line's: as of the document's revision, and for a price fix also as of the
    one before."""
    revisions = {document.price_revision}
    if document.reason == "price_fix":
        revisions.add(revision_before(earlier))
    books = [book.as_of(revision) for revision in sorted(revisions)]
    return [piece for piece in pieces if any(is_priced_by(piece, known, key) for known in books)]


def is_priced_by(piece: Piece, book: PriceBook, key: Key) -> bool:
    price = book.find(piece.meter, piece.dimensions, piece.first)
    return price is not None and difference.key_of_price(price) == key


def _without_id(line: Line) -> dict[str, object]:
    return {name: getattr(line, name) for name in Line.__struct_fields__ if name != "id"}
