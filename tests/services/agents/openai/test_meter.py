"""What the meter of a provider's stream holds back."""

from services.agents.metering import Tokens
from services.agents.openai.passthrough import _Meter
from services.agents.openai.usage import reported

USAGE = b'data: {"choices":[],"usage":{"prompt_tokens":3,"completion_tokens":2}}\n\n'


def test_an_event_without_an_end_is_not_kept() -> None:
    meter, sent, given = _Meter(b"", hide=True), b"", 0
    for _ in range(64):
        sent += b"x" * 65_536
        given += len(meter.take(b"x" * 65_536))
    assert len(sent) - given < 1 << 20 < given
    assert given + len(meter.end()) == len(sent)


def test_usage_is_read_and_its_event_left_out_only_where_nobody_asked() -> None:
    for hide in (True, False):
        meter = _Meter(b"", hide=hide)
        told = b"".join(meter.take(bytes([byte])) for byte in b"data: {}\n\n" + USAGE) + meter.end()
        assert told == b"data: {}\n\n" + (b"" if hide else USAGE)
        assert meter.tokens == Tokens(input=3, output=2)


def test_details_that_a_provider_reports_are_metered_apart() -> None:
    chat = reported(
        {
            "prompt_tokens": 100,
            "completion_tokens": 20,
            "prompt_tokens_details": {"cached_tokens": 30, "audio_tokens": 10},
            "completion_tokens_details": {"audio_tokens": 5, "reasoning_tokens": 2},
        }
    )
    assert chat is not None
    assert {" ".join(piece.name): piece.quantity for piece in chat.pieces()} == {
        "llm.tokens.input": 60, "llm.tokens.input audio": 10, "llm.tokens.cached": 30,
        "llm.tokens.output": 15, "llm.tokens.output audio": 5, "llm.requests": 1,
    }  # fmt: skip
    strange = reported(
        {"prompt_tokens": 1, "prompt_tokens_details": {"cached_tokens": -5, "audio_tokens": 1.5}}
    )
    assert strange == Tokens(input=1)
