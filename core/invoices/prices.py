"""The prices that a closed service period was charged at, also after PostgreSQL lost some of them.

Put back to an earlier time, it has documents again (`archive.py`) and not the prices that were recorded since.
They are recorded again as new rows with later revisions, so what a document charged is looked for in the book,
not only its revision. Pure.
"""

from collections.abc import Mapping, Sequence

from core.decimals import canonical
from core.invoices import difference
from core.invoices.document import Charge, Document
from core.invoices.issuing import InvoiceError
from core.prices import Price, PriceBook


def charged_at(documents: Sequence[Document], book: PriceBook) -> int:
    """The revision that rates a period at the prices it was last charged at: the last that its documents name,
    or where rows that they charged are gone, the first by which equal ones stand again.

    Args:
        documents: of one service period, in their order.

    Raises:
        InvoiceError: `prices_went_back`.
    """
    revision = max(one.price_revision for one in documents)
    recorded = {price.id for price in book.recorded}
    lost = {
        key: one.charge
        for key, one in difference.charged(documents).items()
        if one.charge.price not in recorded
    }
    if not lost:
        return revision
    later = {
        price.revision
        for price in book.recorded
        if price.revision > revision and difference.key_of_price(price) in lost
    }
    for each in (revision, *sorted(later)):
        if _stand(lost, book.as_of(each)):
            return each
    (meter, _, since, _), first = next(iter(lost.items()))
    raise InvoiceError(
        "prices_went_back",
        f"{documents[-1].number} was rated at price revision {revision}, and {len(lost)} of the prices charged are not in "
        f"the book, which ends at revision {book.revision}: PostgreSQL was put back to an earlier time. Record them again, "
        f"the first of {meter} from {since} at {first.unit_price} for {first.per}.",
    )


def _stand(charges: Mapping[difference.Key, Charge], book: PriceBook) -> bool:
    standing = {difference.key_of_price(price): price for price in book.prices}
    return all(_is_of(charge, standing.get(key)) for key, charge in charges.items())


def _is_of(charge: Charge, price: Price | None) -> bool:
    return price is not None and (canonical(price.unit_price), price.per, price.model) == (
        charge.unit_price,
        charge.per,
        charge.explanation.get("model"),
    )
