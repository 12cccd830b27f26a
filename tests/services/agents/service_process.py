"""The agents service with the scripted loop in place of models."""

from functools import partial

from services.agents.app import NAME, PORT, create_app
from services.common.server import run
from tests.services.agents.scripted import execute

if __name__ == "__main__":
    run(partial(create_app, loop=execute), NAME, PORT)
