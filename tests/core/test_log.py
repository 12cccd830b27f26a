"""A line is never lost: what its data cannot say in JSON it says in another way."""

import io
import json
import logging
from typing import Any

import pytest

from core.log import JsonFormatter, Logger


def line(message: str, **data: object) -> dict[str, Any]:
    """What stands in the log; fails where logging itself reported an error."""
    out = io.StringIO()
    handler = logging.StreamHandler(out)
    handler.setFormatter(JsonFormatter("test"))
    logger = logging.getLogger("test.log")
    logger.addHandler(handler)
    logger.setLevel(logging.INFO)
    try:
        Logger("test.log").info(message, **data)
    finally:
        logger.removeHandler(handler)
    found: dict[str, Any] = json.loads(out.getvalue())
    return found


def test_offsets_by_partition_are_logged() -> None:
    assert line("following", positions={0: 12, 7: 3})["data"] == {"positions": {"0": 12, "7": 3}}


@pytest.mark.parametrize("value", ["half a \ud83d", 2**70, {("a", 1): 2}])
def test_what_no_encoder_takes_is_told_as_python_writes_it(value: object) -> None:
    found = line("odd", value=value)
    assert found["message"] == "odd"
    assert found["data"] == {"unencodable": repr({"value": value})}
