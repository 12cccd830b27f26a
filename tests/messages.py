"""Messages as a reader of docs/asyncapi.json checks them, who knows nothing else of this project."""

import functools
import json
from typing import Any

import jsonschema_rs

from tests.real_data import REPOSITORY

DOCUMENT: dict[str, Any] = json.loads((REPOSITORY / "docs" / "asyncapi.json").read_text())


def resolve(document: dict[str, Any], reference: str) -> Any:
    """What a `$ref` leads to. Raises: KeyError."""
    found: Any = document
    for part in reference.removeprefix("#/").split("/"):
        found = found[part.replace("%7B", "{").replace("%7D", "}")]
    return found


@functools.cache
def validator(channel: str, part: str = "payload") -> jsonschema_rs.Validator:
    """Of the payloads or headers of a channel."""
    message = resolve(DOCUMENT, DOCUMENT["channels"][channel]["messages"]["message"]["$ref"])
    schema = {**message[part], "components": DOCUMENT["components"]}
    return jsonschema_rs.validator_for(schema, validate_formats=True)


def check(channel: str, value: bytes, headers: tuple[tuple[str, bytes], ...] = ()) -> dict[str, Any]:
    """The message, which fits. Raises: AssertionError that shows it."""
    message: dict[str, Any] = json.loads(value)
    try:
        validator(channel).validate(message)
        validator(channel, "headers").validate({name: text.decode() for name, text in headers})
    except jsonschema_rs.ValidationError as error:
        raise AssertionError(f"{channel}: {message}\n{headers}\n{error}") from None
    return message
