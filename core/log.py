"""Structured logs: one JSON object a line, in the fixed format of the platform.

    {"timestamp":"2026-02-18T12:00:00.000Z","level":"info","service":"agents","traceId":"…",
     "spanId":"…","message":"Agent task completed","data":{…}}

Trace and span ids come from the current OpenTelemetry context. `data` holds ids and numbers, never
secrets, bodies or personal data.
"""

import json
import logging
import sys
from typing import Any, Final

import orjson
from opentelemetry import trace

from core.clock import now, rfc3339

LEVELS: Final = {
    "debug": logging.DEBUG,
    "info": logging.INFO,
    "warn": logging.WARNING,
    "error": logging.ERROR,
    "fatal": logging.CRITICAL,
}
_NAMES: Final = {number: name for name, number in LEVELS.items()}


class JsonFormatter(logging.Formatter):
    """Formats a record of the standard library's logging; `extra={"data": {...}}` becomes `data`."""

    def __init__(self, service: str) -> None:
        super().__init__()
        self._service = service

    def format(self, record: logging.LogRecord) -> str:
        context = trace.get_current_span().get_span_context()
        data: dict[str, Any] = dict(getattr(record, "data", {}))
        if record.exc_info and record.exc_info[0] is not None:
            data["error"] = record.exc_info[0].__name__
            data["stack"] = self.formatException(record.exc_info)[-4000:]
        line = {
            "timestamp": rfc3339(now()),
            "level": _NAMES.get(record.levelno, record.levelname.lower()),
            "service": self._service,
            "traceId": f"{context.trace_id:032x}" if context.is_valid else "",
            "spanId": f"{context.span_id:016x}" if context.is_valid else "",
            "message": record.getMessage(),
            "data": data,
        }
        try:
            return orjson.dumps(line, default=str, option=orjson.OPT_NON_STR_KEYS).decode()
        except TypeError:  # a lone surrogate, a number above 64 bits, a key that is no scalar
            return json.dumps({**line, "data": {"unencodable": repr(data)}})


def configure(service: str, level: str = "info") -> None:
    """Send everything that logs in this process to stdout in the fixed format.

    Raises:
        ValueError: for a level that is not one of `LEVELS`.
    """
    if level not in LEVELS:
        raise ValueError(f"HEADRACE_LOG_LEVEL is {level!r}; use one of {', '.join(LEVELS)}")
    handler = logging.StreamHandler(sys.stdout)
    handler.setFormatter(JsonFormatter(service))
    logging.basicConfig(level=LEVELS[level], handlers=[handler], force=True)


class Logger:
    """A named logger whose keyword arguments become `data`: `log.info("key revoked", key=key_id)`."""

    def __init__(self, name: str) -> None:
        self._logger = logging.getLogger(name)

    def debug(self, message: str, **data: object) -> None:
        self._logger.debug(message, extra={"data": data})

    def info(self, message: str, **data: object) -> None:
        self._logger.info(message, extra={"data": data})

    def warn(self, message: str, **data: object) -> None:
        self._logger.warning(message, extra={"data": data})

    def error(self, message: str, *, exc: BaseException | None = None, **data: object) -> None:
        self._logger.error(message, exc_info=exc, extra={"data": data})

    def fatal(self, message: str, *, exc: BaseException | None = None, **data: object) -> None:
        self._logger.critical(message, exc_info=exc, extra={"data": data})
