"""A secret shows itself to `reveal()` and to nothing else."""

import copy
import json
import logging
import pickle
import traceback
from dataclasses import asdict, dataclass

import msgspec
import orjson
import pytest

from core.log import JsonFormatter
from core.security.secret import REDACTED, Secret

CANARY = "sk_live_canary_0f9a"


@dataclass
class Holder:
    secret: Secret


def test_reveal_gives_the_text() -> None:
    assert Secret(CANARY).reveal() == CANARY


def test_every_rendering_is_redacted() -> None:
    secret = Secret(CANARY)
    renderings = [
        repr(secret), str(secret), f"{secret}", f"{secret!r:>40}", format(secret), f"{secret} {secret!r}",
        repr(Holder(secret)), str(asdict(Holder(secret))), repr({"key": [secret]}), repr(ValueError(secret)),
        json.dumps({"key": secret}, default=str), orjson.dumps({"key": secret}, default=str).decode(),
        msgspec.json.encode({"key": secret}, enc_hook=str).decode(), str(dir(secret)),
        pickle.dumps(secret).decode("latin-1"), pickle.dumps(Holder(secret)).decode("latin-1"),
    ]  # fmt: skip
    assert all(CANARY not in rendering for rendering in renderings)
    assert f"{secret}" == REDACTED
    assert pickle.loads(pickle.dumps({"key": secret})) == {"key": REDACTED}


def test_plain_json_refuses() -> None:
    for dump in (json.dumps, orjson.dumps, msgspec.json.encode):
        with pytest.raises(TypeError) as refused:
            dump({"key": Secret(CANARY)})
        assert CANARY not in str(refused.value)


def test_log_lines_are_redacted() -> None:
    formatter = JsonFormatter("test")
    try:
        raise ValueError(Secret(CANARY))
    except ValueError as error:
        record = logging.LogRecord(
            "x",
            logging.ERROR,
            __file__,
            1,
            "key %s",
            (Secret(CANARY),),
            (type(error), error, error.__traceback__),
        )
        shown = "".join(traceback.TracebackException.from_exception(error, capture_locals=True).format())
    record.data = {"key": Secret(CANARY), "nested": {"keys": [Secret(CANARY)]}}
    assert CANARY not in formatter.format(record)
    assert formatter.format(record).count(REDACTED) >= 3
    assert shown.count(CANARY) == 0


def test_it_compares_but_does_not_hash_or_iterate() -> None:
    assert Secret(CANARY) == Secret(CANARY)
    assert Secret(CANARY) != Secret("other")
    assert Secret(CANARY) != CANARY
    assert not Secret("")
    with pytest.raises(TypeError):
        hash(Secret(CANARY))
    with pytest.raises(TypeError):
        iter(Secret(CANARY))  # type: ignore[call-overload]
    assert copy.deepcopy(Secret(CANARY)) == Secret(CANARY)
    assert not hasattr(Secret(CANARY), "__dict__")
    with pytest.raises(TypeError, match="no state"):
        Secret(CANARY).__getstate__()
