"""`python -m services.relay`"""

from services.common.server import run
from services.relay.app import NAME, PORT, create_app

if __name__ == "__main__":
    run(create_app, NAME, PORT)
