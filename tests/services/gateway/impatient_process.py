"""The gateway with the shipped route table, impatient: what takes half a minute there takes one second."""

from dataclasses import replace

from services.common.lifecycle import Lifecycle
from services.common.server import run
from services.gateway.app import Gateway
from services.gateway.routes import ROUTES


def create_app(lifecycle: Lifecycle) -> Gateway:
    return Gateway(lifecycle, [replace(row, timeout=1.0) for row in ROUTES])


if __name__ == "__main__":
    run(create_app, "gateway", 8080)
