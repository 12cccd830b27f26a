"""What is read of a request: what we need, leniently; clients send more than we know."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Final

from services.agents.model import Role
from services.common.body import parsed
from services.common.errors import Problem, invalid

MAX_BYTES = 32 << 20
MAX_MESSAGES = 2_000
"""Of one request to an agent: each becomes a row of the conversation, all in one transaction."""
AGENT = "agent:"
_ROLES: dict[str, Role] = {
    "user": "user",
    "assistant": "assistant",
    "system": "system",
    "developer": "system",
}
_PLAIN: Final = {"type": "text"}
_FORMATS: Final = "an agent answers in plain text; say in its instructions what form you want, and check it."
_UNOFFERED: Final[Mapping[str, tuple[tuple[object, ...], str]]] = {
    "response_format": ((_PLAIN,), _FORMATS),
    "n": ((1,), "a run has one answer; start several."),
    "stop": (("", []), "cut the answer yourself."),
    "logprobs": ((False, 0), "runs keep no probabilities."),
    "top_logprobs": ((0,), "runs keep no probabilities."),
    "logit_bias": (({},), "name a model on chat/completions."),
    "functions": (([],), "agents have tools of their own."),
    "modalities": ((["text"],), "runs answer with text."),
    "audio": ((), "runs answer with text."),
    "prediction": ((), "name a model on chat/completions."),
    "prompt": ((), "make an agent with these instructions."),
    "conversation": ((), "go on behind a response with previous_response_id."),
}
"""By name: the values that change nothing, and what to do instead of others."""


@dataclass(frozen=True, slots=True)
class Talk:
    """What was said: `text` is to be answered, `prior` came before."""

    text: str
    prior: list[tuple[Role, str]] = field(default_factory=list)


async def document(body: bytes) -> dict[str, Any]:
    """Raises: Problem 400, 413, 422."""
    value = await parsed(body, max_bytes=MAX_BYTES)
    if not isinstance(value, dict):
        raise invalid("", "The body must be a JSON object.")
    return value


def model_of(body: dict[str, Any]) -> str:
    """Raises: Problem 422."""
    model = body.get("model")
    if not isinstance(model, str) or not 0 < len(model) <= 256:
        raise invalid("/model", "Name a model of GET /v1/models, or an agent as `agent:<slug>`.")
    return model


def flag(body: dict[str, Any], name: str, *, default: bool = False) -> bool:
    """Raises: Problem 422."""
    value = body.get(name)
    if value is None:
        return default
    if not isinstance(value, bool):
        raise invalid(f"/{name}", f"`{name}` is true or false.")
    return value


def includes_usage(body: dict[str, Any]) -> bool:
    options = body.get("stream_options")
    return isinstance(options, dict) and options.get("include_usage") is True


def metadata_of(body: dict[str, Any]) -> dict[str, str]:
    """Raises: Problem 422."""
    value = body.get("metadata")
    if value is None:
        return {}
    fits = isinstance(value, dict) and len(value) <= 16
    if not fits or not all(isinstance(text, str) and len(text) <= 512 for text in value.values()):
        raise invalid("/metadata", "`metadata` has at most 16 names with texts of at most 512 characters.")
    return dict(value)


def temperature_of(body: dict[str, Any]) -> float | None:
    """Raises: Problem 422."""
    value = body.get("temperature")
    if value is None:
        return None
    if isinstance(value, bool) or not isinstance(value, int | float) or not 0 <= value <= 2:
        raise invalid("/temperature", "`temperature` is a number from 0 to 2.")
    return float(value)


def most_tokens_of(body: dict[str, Any], *names: str) -> int | None:
    """The first of these that says how many tokens an answer may have. Raises: Problem 422."""
    for name in names:
        value = body.get(name)
        if value is None:
            continue
        if isinstance(value, bool) or not isinstance(value, int) or not 0 < value <= 10_000_000:
            raise invalid(f"/{name}", f"`{name}` is a whole number from 1 to 10,000,000.")
        return value
    return None


def refuse_unoffered(body: dict[str, Any]) -> None:
    """What would change an answer's meaning and that a run does not heed. Hints that only colour it, `top_p`
    and the like, pass without effect. Raises: Problem 422 `unsupported_parameter`."""
    for name, (neutral, instead) in _UNOFFERED.items():
        value = body.get(name)
        if value is not None and value not in neutral:
            raise unsupported(name, instead)
    text = body.get("text")
    if isinstance(text, dict) and text.get("format") not in (None, _PLAIN):
        raise unsupported("text.format", _FORMATS)


def messages_of(body: dict[str, Any]) -> Talk:
    """`messages` of a chat for an agent. Raises: Problem 422."""
    return _talk(body.get("messages"), "messages")


def input_of(body: dict[str, Any]) -> Talk:
    """`input` of a response: a text or items. Raises: Problem 422."""
    value = body.get("input")
    if isinstance(value, str) and value:
        return Talk(value)
    return _talk(value, "input")


def _talk(items: Any, name: str) -> Talk:
    if not isinstance(items, list) or not items:
        raise invalid(f"/{name}", f"`{name}` must hold at least one message.")
    if len(items) > MAX_MESSAGES:
        raise invalid(
            f"/{name}", f"`{name}` holds at most {MAX_MESSAGES} messages.", code="too_many_messages"
        )
    said: list[tuple[Role, str]] = []
    for index, item in enumerate(items):
        role = _ROLES.get(str(item.get("role"))) if isinstance(item, dict) else None
        if role is None:
            raise invalid(
                f"/{name}/{index}",
                "An agent takes messages of user, assistant, system and developer; its tools are its own.",
            )
        text = _text(item.get("content"), f"/{name}/{index}/content")
        if text:
            said.append((role, text))
    if not said or said[-1][0] != "user":
        raise invalid(f"/{name}/{len(items) - 1}", "The last message must be the user's, with a text.")
    return Talk(said[-1][1], said[:-1])


def _text(content: Any, path: str) -> str:
    if content is None:
        return ""
    if isinstance(content, str):
        return content
    parts = []
    for index, part in enumerate(content if isinstance(content, list) else [None]):
        if not isinstance(part, dict) or not isinstance(part.get("text"), str):
            raise invalid(f"{path}/{index}", "An agent reads text; attach other things to the conversation.")
        parts.append(part["text"])
    return "".join(parts)


def unsupported(name: str, instead: str) -> Problem:
    """422 for something of OpenAI's interface that is not offered here."""
    return invalid(f"/{name}", f"`{name}` is not offered here; {instead}", code="unsupported_parameter")
