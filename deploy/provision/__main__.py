"""`python -m deploy.provision`: get what the profile `stack` and the tests need."""

import sys

from deploy.provision import ProvisioningError, provision


def report(line: str) -> None:
    """Progress goes to stderr at once."""
    sys.stderr.write(f"{line}\n")
    sys.stderr.flush()


def main() -> int:
    """Exit status 0 when everything is there, 1 with a list of what is not."""
    try:
        provision(report)
    except ProvisioningError as error:
        report(str(error))
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
