"""`python -m services.billing`"""

import sys

from core.prices import PriceError
from services.billing.app import NAME, PORT, create_app
from services.common.server import run

if __name__ == "__main__":
    try:
        run(create_app, NAME, PORT)
    except PriceError as error:
        sys.stderr.write(f"{NAME}: {error}\n")
        raise SystemExit(2) from None
