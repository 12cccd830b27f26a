"""`python -m services.ws`"""

from services.common.server import run
from services.ws.app import NAME, PORT, create_app
from services.ws.protocol import WsOrHttp

if __name__ == "__main__":
    run(create_app, NAME, PORT, protocol=WsOrHttp)
