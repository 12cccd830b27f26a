"""`python -m services.agents`"""

from services.agents.app import NAME, PORT, create_app
from services.common.server import run

if __name__ == "__main__":
    run(create_app, NAME, PORT)
