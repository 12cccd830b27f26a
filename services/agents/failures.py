"""What can go wrong between us and a provider, and what is done about it."""

from dataclasses import dataclass

from pydantic_ai.exceptions import (
    ContentFilterError,
    ModelAPIError,
    ModelAuthenticationError,
    ModelConnectionError,
    ModelContextWindowExceededError,
    ModelNotFoundError,
    ModelQuotaExceededError,
    ModelRateLimitError,
    ModelRequestRejectedError,
    ModelRequestTimeout,
    ModelServerError,
    ModelTimeoutError,
    ModelUnavailableError,
)


@dataclass(frozen=True, slots=True)
class Policy:
    """How often and how patiently a model is asked again. Seconds."""

    attempts: int = 3
    """Requests to one model for one turn."""
    first_pause: float = 0.5
    """Doubled with each attempt."""
    longest_pause: float = 8.0
    longest_retry_after: float = 30.0
    """A provider that wants us to wait longer is given up."""


class Failure(Exception):  # noqa: N818 - it is a result more than an error
    """A model turn that did not succeed.

    Args:
        code: stable, what the run ends with if nothing helps.
        retry: asking the same model again may help.
        retry_after: what the provider asked for, seconds.
    """

    def __init__(self, code: str, message: str, *, retry: bool, retry_after: float | None = None) -> None:
        super().__init__(message)
        self.code, self.message = code, message
        self.retry, self.retry_after = retry, retry_after


class LimitError(Exception):
    """The run has used what it may. `code` is `limit_steps`, `limit_tokens`, `limit_output_tokens` or
    `limit_cost`."""

    def __init__(self, code: str, message: str) -> None:
        super().__init__(message)
        self.code, self.message = code, message


_KINDS: tuple[tuple[type[Exception], str, str, bool], ...] = (
    (ModelQuotaExceededError, "provider_quota", "the provider's quota or credit is used up; top it up", False),
    (ModelRateLimitError, "provider_rate_limited", "the provider limits our requests; try again later", True),
    (ModelContextWindowExceededError, "context_too_long", "the conversation is too long for this model; start a new one or choose another model", False),
    (ModelAuthenticationError, "provider_auth", "the provider refuses the key; check it", False),
    (ModelNotFoundError, "provider_model_not_found", "the provider does not know this model; check its name and the base_url", False),
    (ModelRequestRejectedError, "provider_rejected", "the provider refuses the request", False),
    (ModelUnavailableError, "provider_unavailable", "the provider is overloaded or down; try again later", True),
    (ModelServerError, "provider_error", "the provider failed; try again later", True),
    (ModelTimeoutError, "provider_timeout", "the provider did not answer in time", True),
    (ModelRequestTimeout, "provider_timeout", "the provider did not answer in time", True),
    (ModelConnectionError, "provider_unreachable", "the connection to the provider failed or broke off", True),
    (ContentFilterError, "content_filter", "the provider's filter stopped the answer", False),
)  # fmt: skip


def failure_of(error: Exception, model: str) -> Failure:
    """What an error of a model call means. Details of the provider stay in the log: they may hold secrets."""
    retry_after = error.retry_after if isinstance(error, ModelAPIError) else None
    for kind, code, message, retry in _KINDS:
        if isinstance(error, kind):
            return Failure(code, f"{model}: {message}.", retry=retry, retry_after=retry_after)
    if isinstance(error, ModelAPIError) and "finish_reason" in str(error):
        return cut(model)
    return Failure("provider_bad_answer", f"{model}: the answer cannot be read.", retry=True)


def cut(model: str) -> Failure:
    """An answer that ended without its end: half a sentence must not pass for an answer."""
    return Failure("provider_cut", f"{model}: the answer broke off before its end.", retry=True)
