"""What a service period was charged so far, and what rating says now: the difference is the adjustment.

rate(now) − charged on cumulative quantities, line by line, so that the customer pays in total what
rating everything at once would say. Worked: a volume price of 10 up to 15 units and 5 beyond. 15 units
were invoiced at 150; a 16th comes late: rate(16) = 80, so the line is 80 − 150 = −70.

Pure. A line is named by what its price is for (meter, dimensions, date, whose), not by the price's row:
a corrected price is the same line.
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from decimal import Decimal
from typing import Final, Literal

from core.clock import rfc3339
from core.decimals import EXACT, canonical, total
from core.invoices.document import Charge, Document, Line
from core.prices import EVERYBODY, Price
from core.rating import Line as RatedLine
from core.rating import Rated, explain, round_amount

Whose = Literal["everybody", "you"]
Key = tuple[str, tuple[tuple[str, str], ...], str, Whose]
"""Meter, dimensions, valid_from and whose price it is."""

ZERO: Final = Decimal(0)


@dataclass(frozen=True, slots=True)
class Charged:
    """What stands on one line of a service period, over its invoice and all adjustments."""

    charge: Charge
    quantity: Decimal
    unrounded: Decimal
    amount: Decimal


def charges(rated: Rated) -> dict[Key, Charged]:
    """The lines of a rating of one service period."""
    return {key_of_price(line.price): _charged(line) for line in rated.lines}


def charged(documents: Iterable[Document]) -> dict[Key, Charged]:
    """What the documents of one service period charge together, in the order they were issued."""
    found: dict[Key, Charged] = {}
    for document in documents:
        for line in document.lines:
            key = key_of(line)
            before = found.get(key)
            quantity, unrounded, amount = _sums(line)
            if before is not None:
                quantity = EXACT.add(before.quantity, quantity)
                unrounded = EXACT.add(before.unrounded, unrounded)
                amount = EXACT.add(before.amount, amount)
            if line.explanation is None and line.after is None and not (quantity or unrounded or amount):
                found.pop(key, None)  # this document took it back entirely
            else:
                found[key] = Charged(_latest(line), quantity, unrounded, amount)
    return found


def difference(before: Mapping[Key, Charged], after: Mapping[Key, Charged], document_id: str) -> list[Line]:
    """The lines of an adjustment, none where nothing changed. Lines whose sums are equal are left out."""
    found = list[Line]()
    for key in sorted({*before, *after}):
        old, new = before.get(key), after.get(key)
        quantity, unrounded, amount = (
            EXACT.subtract(getattr(new, name, ZERO), getattr(old, name, ZERO))
            for name in ("quantity", "unrounded", "amount")
        )
        if not (quantity or unrounded or amount):
            continue
        price = (new or old).charge  # type: ignore[union-attr]
        found.append(
            Line(
                id=f"{document_id}:{len(found) + 1}",
                meter=key[0],
                dimensions=dict(key[1]),
                valid_from=key[2],
                holds_for=key[3],
                price=price.price,
                unit_price=price.unit_price,
                per=price.per,
                quantity=canonical(quantity),
                amount_unrounded=canonical(unrounded),
                amount=format(amount, "f"),
                explanation=None,
                before=None if old is None else _shown(old),
                after=None if new is None else _shown(new),
            )
        )
    return found


def lines(rated: Rated, document_id: str) -> list[Line]:
    """The lines of an invoice."""
    return [
        Line(
            id=f"{document_id}:{number}",
            meter=line.price.meter,
            dimensions=dict(line.price.dimensions),
            holds_for=_whose(line.price),
            valid_from=rfc3339(line.price.valid_from),
            price=line.price.id,
            unit_price=canonical(line.price.unit_price),
            per=line.price.per,
            quantity=canonical(line.quantity),
            amount_unrounded=canonical(line.amount_unrounded),
            amount=str(line.amount),
            explanation=dict(explain(line)),
        )
        for number, line in enumerate(rated.lines, 1)
    ]


def sums(of: Iterable[Line], currency: str | None) -> tuple[str, str]:
    """Unrounded and total of lines, as text; the total has the currency's digits."""
    each = list(of)
    unrounded = total(Decimal(line.amount_unrounded) for line in each)
    amount = total(Decimal(line.amount) for line in each)
    return canonical(unrounded), str(amount if currency is None else round_amount(amount, currency))


def _sums(line: Line) -> tuple[Decimal, Decimal, Decimal]:
    return Decimal(line.quantity), Decimal(line.amount_unrounded), Decimal(line.amount)


def _latest(line: Line) -> Charge:
    """How the line stands after this document."""
    if line.explanation is None and (side := line.after or line.before) is not None:
        return side
    return Charge(
        line.price, line.unit_price, line.per, line.quantity, line.amount_unrounded, line.amount,
        line.explanation or {},
    )  # fmt: skip


def _shown(one: Charged) -> Charge:
    """A side of an adjustment: how it is explained, with the sums of all documents so far."""
    shown = one.charge
    return Charge(
        shown.price, shown.unit_price, shown.per,
        canonical(one.quantity), canonical(one.unrounded), format(one.amount, "f"), shown.explanation,
    )  # fmt: skip


def _charged(line: RatedLine) -> Charged:
    shown = Charge(
        line.price.id, canonical(line.price.unit_price), line.price.per,
        canonical(line.quantity), canonical(line.amount_unrounded), str(line.amount), dict(explain(line)),
    )  # fmt: skip
    return Charged(shown, line.quantity, line.amount_unrounded, line.amount)


def key_of(line: Line) -> Key:
    return line.meter, tuple(sorted(line.dimensions.items())), line.valid_from, line.holds_for


def key_of_price(price: Price) -> Key:
    return price.meter, price.dimensions, rfc3339(price.valid_from), _whose(price)


def _whose(price: Price) -> Whose:
    return "everybody" if price.tenant == EVERYBODY else "you"
