"""Runs a service process: settings, logs, traces, HTTP server, drain on SIGTERM."""

import signal
import sys
from collections.abc import Callable
from types import FrameType
from typing import Any, Final

import uvicorn
from pydantic import ValidationError

from core import log
from core.settings import ServiceSettings
from core.telemetry import configure_tracing
from services.common.http_protocol import BoundedProtocol
from services.common.lifecycle import Lifecycle

KEEP_ALIVE_SECONDS: Final = 75
"""Longer than any client of ours keeps a connection idle, so that none is closed under a request."""
DRAIN_SECONDS: Final = 6
"""Requests at hand get this long after SIGTERM; then they are cut."""

_LOG = log.Logger("services.server")

Factory = Callable[[Lifecycle], Any]
"""Makes the ASGI application; settings are read here, so that a wrong one ends the start."""


class _Server(uvicorn.Server):
    def __init__(self, config: uvicorn.Config, lifecycle: Lifecycle) -> None:
        super().__init__(config)
        self._lifecycle = lifecycle

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        self._lifecycle.draining = True
        _LOG.info("draining", signal=signal.Signals(sig).name)
        super().handle_exit(sig, frame)
        # uvicorn raises them again after the drain, which would make a clean stop look like a crash.
        self._captured_signals.clear()


def run(
    factory: Factory, name: str, usual_port: int, *, protocol: type[BoundedProtocol] = BoundedProtocol
) -> None:
    """Serve until INT or TERM; ends the process with 0 after a clean drain.

    Exits with 2 and one line for each wrong or missing setting.
    """
    lifecycle = Lifecycle()
    try:
        settings = ServiceSettings()
        log.configure(name, settings.log_level)
        configure_tracing(name)
        app = factory(lifecycle)
    except ValidationError as error:
        for item in error.errors():
            field = "_".join(str(part) for part in item["loc"]).upper()
            sys.stderr.write(f"{name}: setting HEADRACE_{field}: {item['msg']}\n")
        raise SystemExit(2) from None
    config = uvicorn.Config(
        app,
        host=settings.host,
        port=settings.port or usual_port + settings.port_base,
        loop="uvloop",
        http=protocol,
        ws="none",
        lifespan="on",
        log_config=None,
        access_log=False,
        server_header=False,
        proxy_headers=False,
        timeout_keep_alive=KEEP_ALIVE_SECONDS,
        timeout_graceful_shutdown=DRAIN_SECONDS,
        backlog=1024,
    )
    server = _Server(config, lifecycle)
    server.run()
    if not server.started:
        raise SystemExit(1)
