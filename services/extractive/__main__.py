"""`python -m services.extractive`"""

from services.common.server import run
from services.extractive.app import NAME, PORT, create_app

if __name__ == "__main__":
    run(create_app, NAME, PORT)
