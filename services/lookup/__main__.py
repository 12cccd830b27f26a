"""`python -m services.lookup`"""

from services.common.server import run
from services.lookup.app import NAME, PORT, create_app

if __name__ == "__main__":
    run(create_app, NAME, PORT)
