"""Services as real processes for tests: `python -m services.<name>` with a whole environment of its own."""

import os
import secrets
import signal
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat
from pydantic import SecretStr

from core.settings import CacheSettings, DatabaseSettings
from deploy.component import Component
from deploy.components import is_ready

REPOSITORY = Path(__file__).parents[2]
OWNER_EMAIL = "owner@example.org"
OWNER_PASSWORD = secrets.token_urlsafe(24)
"""One for the whole session: the first users service on a database decides."""


def environment(
    folder: Path, database: DatabaseSettings, cache: CacheSettings, *, users_port: int, gateway_port: int
) -> dict[str, str]:
    """What the launcher would give to a service; keys are made in `folder`."""
    key_file = folder / "jwt.pem"
    if not key_file.exists():
        key_file.write_bytes(
            Ed25519PrivateKey.generate().private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())
        )
    return {
        **_variables(database.model_dump()),
        **_variables(cache.model_dump()),
        "HEADRACE_EVENTLOG_URL": "postgresql:",
        "HEADRACE_OBJECTS_URL": folder.as_uri(),
        "HEADRACE_INTERNAL_KEY": secrets.token_hex(32),
        "HEADRACE_WEB_KEY": secrets.token_hex(32),
        "HEADRACE_PAGES_KEY": secrets.token_hex(32),
        "HEADRACE_FIELD_KEY": f"1:{secrets.token_hex(32)}",
        "HEADRACE_JWT_PRIVATE_KEY_FILE": str(key_file),
        "HEADRACE_GATEWAY_URL": f"http://127.0.0.1:{gateway_port}",
        "HEADRACE_USERS_URL": f"http://127.0.0.1:{users_port}",
        "HEADRACE_LOG_LEVEL": "debug",
        "HEADRACE_USAGE_SPOOL_DIR": str(folder / "usage-spool"),
        "HEADRACE_MAIL_DIR": str(folder / "mail"),
        "HEADRACE_OWNER_EMAIL": OWNER_EMAIL,
        "HEADRACE_OWNER_PASSWORD": OWNER_PASSWORD,
        "PATH": os.environ.get("PATH", ""),
        "PYTHONUNBUFFERED": "1",
    }


def service(name: str, port: int, variables: Mapping[str, str]) -> Component:
    """The process of one service on `port`."""
    return Component(
        name=name,
        argv=(sys.executable, "-W", "error", "-m", f"services.{name}"),
        env={**variables, "HEADRACE_PORT": str(port)},
        cwd=REPOSITORY,
        address=f"http://127.0.0.1:{port}",
        ready=lambda: is_ready(port),
        stop_grace=15,
    )


@contextmanager
def cpu_seconds(most: float) -> Iterator[None]:
    """Raises TimeoutError inside once this process has computed for so long."""

    def end(*_: object) -> None:
        raise TimeoutError(f"more than {most} s of CPU")

    before = signal.signal(signal.SIGVTALRM, end)
    signal.setitimer(signal.ITIMER_VIRTUAL, most)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_VIRTUAL, 0)
        signal.signal(signal.SIGVTALRM, before)


def _variables(settings: Mapping[str, object]) -> dict[str, str]:
    return {
        f"HEADRACE_{name.upper()}": value.get_secret_value() if isinstance(value, SecretStr) else str(value)
        for name, value in settings.items()
        if value is not None
    }
