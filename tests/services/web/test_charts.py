"""Charts: as high as the figures say, and safe whatever a name says."""

import re
from decimal import Decimal

from services.web.charts import HEIGHT, Bar, bars


def heights(svg: str) -> list[float]:
    return [float(one) for one in re.findall(r'class="bar"[^>]* height="([\d.]+)"', svg)]


def test_bars_are_as_high_as_their_share_of_the_highest() -> None:
    svg = bars([Bar("a", Decimal(5), "5"), Bar("b", Decimal(0), "0"), Bar("c", Decimal(10), "10")], "tokens")
    assert heights(svg) == [HEIGHT / 2, 0, HEIGHT]


def test_nothing_to_show_is_no_picture() -> None:
    assert bars([], "x") == bars([Bar("a", Decimal(0), "0")], "x") == ""


def test_every_bar_says_its_figure_and_no_text_is_markup() -> None:
    svg = bars([Bar("<b>", Decimal("12.5"), "12.5 tokens", '/usage?a="&b=1')], '"><script>')
    assert "<title>&lt;b&gt; · 12.5 tokens</title>" in svg
    assert "<script>" not in svg
    assert '<a href="/usage?a=&#34;&amp;b=1">' in svg


def test_few_of_many_places_are_named() -> None:
    svg = bars([Bar(str(number), Decimal(1), "1") for number in range(31)], "x")
    assert len(re.findall("<text", svg)) == 6
