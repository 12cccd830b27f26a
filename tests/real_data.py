"""Inputs that the project does not ship: used where they are, named once where they are not."""

import os
from pathlib import Path

REPOSITORY = Path(__file__).parents[1]
DATA = Path(os.environ.get("HEADRACE_DATA", REPOSITORY.parent / "shared" / "data"))

_ABSENT: set[str] = set()


def real_data(*relative: str) -> Path | None:
    """The file or folder below `HEADRACE_DATA`; None where it is absent, which the run then says.

    Call it when a module is collected and define what reads the data only where there is some.

    Raises:
        FileNotFoundError: it is absent and `HEADRACE_REQUIRE_DATA=1` says that it must not be.
    """
    path = DATA.joinpath(*relative)
    if path.exists():
        return path
    if os.environ.get("HEADRACE_REQUIRE_DATA") == "1":
        raise FileNotFoundError(f"{path} is missing and HEADRACE_REQUIRE_DATA=1; set HEADRACE_DATA")
    _ABSENT.add("/".join(relative))
    return None


def left_out() -> list[str]:
    """One line that names what is absent; none where everything is there."""
    if not _ABSENT:
        return []
    return [f"left out, because {DATA} does not have it: tests on {', '.join(sorted(_ABSENT))}"]
