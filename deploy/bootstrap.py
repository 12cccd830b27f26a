"""From a clone to a working `.venv`, with nothing but Python 3.11: `python3 deploy/bootstrap.py services|run|dev`.

Gets uv (PATH, `.tools`, pip, venv, Debian's packages as root, in this order), installs the locked
wheels by hash and the project itself, and says in one line what went where. A stamp of the lock
makes every further run instant. Standard library only: it runs before anything is installed.
"""

import fcntl
import hashlib
import os
import re
import shutil
import ssl
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
VENV, TOOLS, LOCKS = ROOT / ".venv", ROOT / ".tools", ROOT / "requirements"
STAMP = VENV / "headrace-lock"
OLDEST_UV = (0, 5)
APT = ("python3-pip", "python3-venv")
SETS = ("services", "run", "dev")
"""Sets of packages; each holds the ones before it. `services` is for hosts that serve and store nothing."""

HELP = """\
Headrace needs uv, pip or venv to install its packages, and none of them is here. Any one of these will do:
  as root on Debian or Ubuntu:  apt-get install python3-pip          (then run the same command again)
  without root:                 get uv, one file: https://docs.astral.sh/uv/getting-started/installation/
                                and put it on PATH"""


class BootstrapError(Exception):
    """The message says what is missing and how to get it."""


def say(text: str) -> None:
    sys.stderr.write(f"{text}\n")
    sys.stderr.flush()


def attempt(*command: object, quiet: bool = True) -> bool:
    """Run a command; True where it succeeded."""
    sink = subprocess.DEVNULL if quiet else None
    try:
        return (
            subprocess.run([str(word) for word in command], stdout=sink, stderr=sink, check=False).returncode
            == 0
        )
    except OSError:
        return False


def version_of(uv: str) -> tuple[int, ...]:
    try:
        text = subprocess.run([uv, "--version"], capture_output=True, text=True, check=False).stdout
    except OSError:
        return ()
    found = re.search(r"(\d+)\.(\d+)", text)
    return tuple(map(int, found.groups())) if found else ()


def present_uv() -> str | None:
    """uv of the project or of the user, where it is recent enough."""
    for candidate in (TOOLS / "uv/bin/uv", TOOLS / "venv/bin/uv", shutil.which("uv")):
        if candidate and version_of(str(candidate)) >= OLDEST_UV:
            return str(candidate)
    return None


def get_uv() -> tuple[str, str]:
    """uv, fetched into `.tools` where it is not there yet, and what else was changed on the machine.

    Raises:
        BootstrapError: where this machine offers no way to get it.
    """
    if uv := present_uv():
        return uv, "nothing else was changed"
    if (by_pip() or by_venv()) and (uv := present_uv()):
        return uv, "nothing else was changed"
    if by_apt() and (by_pip() or by_venv()) and (uv := present_uv()):
        return uv, f"system packages: {', '.join(APT)}"
    raise BootstrapError(HELP)


def by_pip() -> bool:
    if not attempt(sys.executable, "-m", "pip", "--version"):
        return False
    say("getting uv with pip into .tools/uv")
    return attempt(
        sys.executable, "-m", "pip", "install", "--quiet", "--disable-pip-version-check", "--require-hashes",
        "--upgrade", "--target", TOOLS / "uv", "-r", LOCKS / "uv.txt", quiet=False,
    )  # fmt: skip


def by_venv() -> bool:
    if not attempt(sys.executable, "-c", "import ensurepip, venv"):
        return False
    say("getting uv with venv into .tools/venv")
    return attempt(sys.executable, "-m", "venv", "--clear", TOOLS / "venv") and attempt(
        TOOLS / "venv/bin/python", "-m", "pip", "install", "--quiet", "--disable-pip-version-check",
        "--require-hashes", "-r", LOCKS / "uv.txt", quiet=False,
    )  # fmt: skip


def by_apt() -> bool:
    if os.geteuid() != 0 or not shutil.which("apt-get"):
        return False
    say(f"installing the system packages {' and '.join(APT)} with apt-get")
    os.environ["DEBIAN_FRONTEND"] = "noninteractive"
    attempt("apt-get", "update", "-qq", quiet=False)
    return attempt("apt-get", "install", "-y", "-qq", "--no-install-recommends", *APT, quiet=False)


def fingerprint(packages: str) -> str:
    """What the environment was made from: lock, project, interpreter, place."""
    digest = hashlib.sha256(f"{packages} {sys.version} {ROOT}".encode())
    for file in (LOCKS / f"{packages}.txt", LOCKS / "build.txt", ROOT / "pyproject.toml"):
        digest.update(file.read_bytes())
    return digest.hexdigest()


def installed() -> tuple[str, str]:
    """Which set the environment holds and the fingerprint it was made from, empty where it has to be made."""
    try:
        name, _, digest = STAMP.read_text().partition(" ")
    except OSError:
        return "", ""
    return (name, digest) if name in SETS and (VENV / "bin/python").exists() else ("", "")


def trust_the_system() -> None:
    """uv brings its own certificates; a company's proxy is only in the system's store."""
    paths = ssl.get_default_verify_paths()
    if paths.cafile or paths.capath:
        for name in ("UV_SYSTEM_CERTS", "UV_NATIVE_TLS"):  # new and old name of one setting
            os.environ.setdefault(name, "1")


def install(packages: str, uv: str) -> None:
    """Make `.venv` hold exactly the locked set.

    Raises:
        BootstrapError: where a step fails; uv has said why.
    """
    STAMP.unlink(missing_ok=True)
    python = VENV / "bin/python"
    steps: list[tuple[object, ...]] = []
    if not attempt(python, "-c", "import sys; sys.exit(sys.version_info[:2] != (3, 11))"):
        steps.append((uv, "venv", "--quiet", "--clear", "--python", sys.executable, VENV))
    steps += [
        (uv, "pip", "sync", "--python", python, "--require-hashes", LOCKS / f"{packages}.txt"),
        (uv, "pip", "install", "--quiet", "--python", python, "--no-deps", "--build-constraints",
         LOCKS / "build.txt", "--editable", ROOT),
    ]  # fmt: skip
    for step in steps:
        if not attempt(*step, quiet=False):
            raise BootstrapError(f"`{' '.join(map(str, step))}` failed; the lines above say why")
    STAMP.write_text(f"{packages} {fingerprint(packages)}")


@contextmanager
def alone() -> Iterator[None]:
    """One bootstrap at a time in this clone."""
    TOOLS.mkdir(exist_ok=True)
    with (TOOLS / "lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield


def main(arguments: list[str]) -> int:
    """Exit status 0 once the environment is there, 1 with what is missing."""
    if len(arguments) != 1 or arguments[0] not in SETS:
        say(f"usage: python3 deploy/bootstrap.py {'|'.join(SETS)}")
        return 2
    held, digest = installed()
    packages = max(
        arguments[0], held, key=lambda name: SETS.index(name) if name else -1
    )  # never take tools away
    if sys.version_info[:2] != (3, 11):
        say(
            f"Headrace needs Python 3.11, this is {sys.version.split()[0]}; run `make PYTHON=/path/to/python3.11 …`"
        )
        return 1
    if digest == fingerprint(packages):
        return 0
    started = time.monotonic()
    trust_the_system()
    os.environ.setdefault("PIP_ROOT_USER_ACTION", "ignore")
    try:
        with alone():
            if installed() != (packages, fingerprint(packages)):
                uv, changed = get_uv()
                install(packages, uv)
                cache = subprocess.run(
                    [uv, "cache", "dir"], capture_output=True, text=True, check=False
                ).stdout.strip()
                count = sum(1 for _ in VENV.glob("lib/python3.11/site-packages/*.dist-info"))
                say(
                    f"environment: {count} packages in {VENV} with {uv}; wheels cached in {cache}; "
                    f"{changed} ({time.monotonic() - started:.0f} s)"
                )
    except BootstrapError as error:
        say(str(error))
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
