"""Pictures of figures as SVG, made on the server: the pages' policy allows neither inline script nor style.

A picture says in its `<title>`s what its table says in cells; whoever cannot see it loses nothing.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from decimal import Decimal
from typing import Final

from markupsafe import Markup

HEIGHT: Final = 120
GAP: Final = 0.25
"""Of a bar's place stays free."""
LABELS: Final = 6
"""At most so many places are named below the axis."""


@dataclass(frozen=True, slots=True)
class Bar:
    """One place of a series. `amount` is what the bar is high for, `said` how it is told."""

    name: str
    amount: Decimal
    said: str
    href: str = ""


def bars(series: Sequence[Bar], about: str, *, width: int = 720) -> Markup:
    """A bar for each place, in a picture of `width` × `HEIGHT` plus names below; empty for no places."""
    most = max((bar.amount for bar in series), default=Decimal(0))
    if not series or most <= 0:
        return Markup("")
    place = width / len(series)
    every = -(-len(series) // LABELS)
    parts = []
    for number, bar in enumerate(series):
        high = round(float(bar.amount / most) * HEIGHT, 2)
        x = round(number * place + place * GAP / 2, 2)
        shape = Markup(
            '<g><title>{} · {}</title><rect class="place" x="{}" y="0" width="{}" height="{}"/>'
            '<rect class="bar" x="{}" y="{}" width="{}" height="{}" rx="2"/></g>'
        ).format(
            bar.name, bar.said, round(number * place, 2), round(place, 2), HEIGHT, x, round(HEIGHT - high, 2),
            round(place * (1 - GAP), 2), high,
        )  # fmt: skip
        parts.append(Markup('<a href="{}">{}</a>').format(bar.href, shape) if bar.href else shape)
        if number % every == 0:
            parts.append(Markup('<text x="{}" y="{}">{}</text>').format(x, HEIGHT + 16, bar.name))
    return Markup(
        '<svg class="chart" viewBox="0 0 {} {}" role="img" aria-label="{}" preserveAspectRatio="xMinYMin meet">{}</svg>'
    ).format(width, HEIGHT + 22, about, Markup("").join(parts))
