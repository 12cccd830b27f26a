from services.common.server import run
from services.gateway.app import create_app

if __name__ == "__main__":
    run(create_app, "gateway", 8080)
