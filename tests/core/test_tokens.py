"""Each token of a reply is in one piece of usage, and a piece says how long the request was."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from core.meters import METERS
from core.tokens import BOUNDS, Reply, pieces

FRESH, CACHED, WRITTEN, OUTPUT = (
    f"llm.tokens.{name}" for name in ("input", "cached", "cache_write", "output")
)


def told(reply: Reply, *, embedding: bool = False) -> dict[str, int]:
    return {
        " ".join([piece.meter, *piece.dimensions.values()]): piece.quantity
        for piece in pieces(reply, embedding=embedding)
    }


def test_classes_are_taken_out_of_what_contains_them() -> None:
    reply = Reply(
        input=1000,
        cached=300,
        cache_written=200,
        output=50,
        input_audio=120,
        cached_audio=100,
        output_audio=40,
    )
    assert told(reply) == {
        FRESH: 1000 - 300 - 200 - 20, f"{FRESH} audio": 20, CACHED: 200, f"{CACHED} audio": 100,
        WRITTEN: 200, OUTPUT: 10, f"{OUTPUT} audio": 40, "llm.requests": 1,
    }  # fmt: skip


def test_an_embedding_is_one_quantity() -> None:
    assert told(Reply(input=7), embedding=True) == {"embedding.tokens": 7, "llm.requests": 1}


@pytest.mark.parametrize(
    ("length", "context"),
    [(0, ""), (32_000, ""), (32_001, "over_32000"), (200_000, "over_128000"), (200_001, "over_200000"),
     (10**7, "over_512000")],
)  # fmt: skip
def test_every_piece_says_above_which_bound_the_request_was(length: int, context: str) -> None:
    found = pieces(Reply(input=length, output=3))
    assert {piece.dimensions.get("context", "") for piece in found if piece.meter != "llm.requests"} == {
        context
    }


counts = st.integers(0, 10**6)


@given(st.builds(Reply, counts, counts, counts, counts, counts, counts, counts))
def test_pieces_are_metered_positive_and_told_apart(reply: Reply) -> None:
    found = pieces(reply)
    assert all(
        piece.quantity > 0 and METERS[piece.meter].dimensions >= set(piece.dimensions) for piece in found
    )
    assert len({piece.name for piece in found}) == len(found)


@given(counts, counts, counts, counts, counts)
def test_no_token_is_lost_or_counted_twice(
    fresh: int, cached: int, written: int, output: int, audio: int
) -> None:
    total = fresh + cached + written + audio
    found = pieces(Reply(total, cached, written, output, input_audio=audio))
    assert sum(piece.quantity for piece in found if piece.meter in (FRESH, CACHED, WRITTEN)) == total
    assert sum(piece.quantity for piece in found if piece.meter == OUTPUT) == output


def test_bounds_ascend() -> None:
    assert list(BOUNDS) == sorted(set(BOUNDS))
