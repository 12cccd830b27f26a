"""One installation: a data folder with its secrets, its profile and the settings of its processes.

`$DATA/secrets.json` holds what was generated, `$DATA/headrace.env` every setting of the processes
(both 0600), `$DATA/installation.json` what does not change: profile and mark. A server whose URL is
in the environment is used instead of started; that is how an installation grows.
"""

import base64
import json
import os
import secrets
import shlex
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from types import MappingProxyType
from typing import Literal, get_args

from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from core import settings as core_settings
from deploy.ports import port
from deploy.servers.rabbitmq import VHOST
from deploy.servers.redis.group import NAME as GROUP
from deploy.servers.redis.group import SENTINELS
from deploy.settings import LauncherSettings
from deploy.supervisor.run_folder import RunFolder, write_atomically

Profile = Literal["embedded", "stack"]
PROFILES: tuple[Profile, ...] = get_args(Profile)
OWNER_EMAIL = "owner@localhost.localdomain"

SEAMS: Mapping[str, str] = {
    "database": "HEADRACE_DATABASE_URL",
    "eventlog": "HEADRACE_EVENTLOG_URL",
    "objects": "HEADRACE_OBJECTS_URL",
    "cache": "HEADRACE_CACHE_URL",
    "vectors": "HEADRACE_VECTORS_URL",
}
"""What can be given by URL; what is given is not started."""

_CREDENTIALS: Mapping[str, tuple[str, ...]] = {
    "database": tuple(f"HEADRACE_DATABASE_{role}_PASSWORD" for role in ("OWNER", "APP", "SYSTEM", "DAGSTER")),
    "objects": ("HEADRACE_OBJECTS_ACCESS_KEY", "HEADRACE_OBJECTS_SECRET_KEY"),
    "cache": ("HEADRACE_CACHE_PASSWORD",),
    "queue": ("HEADRACE_QUEUE_USER", "HEADRACE_QUEUE_PASSWORD"),
}
"""What must be given with the URL. A database's administrator URL stands for its four: `up` makes the roles."""

_PRIVATE = frozenset({"HEADRACE_PORT", "HEADRACE_PORT_BASE", "HEADRACE_DATABASE_ADMIN_URL"})
"""Settings that are not taken over for all processes: of one service, of the launcher, or by option."""


_DATABASE_ROLES = ("postgres", "hr_owner", "hr_app", "hr_system", "hr_dagster", "hr_replication")


class InstallationError(Exception):
    """The data folder cannot be used; the message says what to do."""


@dataclass(frozen=True)
class Installation:
    """What the launcher and the commands know of one data folder."""

    folder: Path
    profile: Profile
    port_base: int
    mark: str
    """Names the installation in the environment of its processes."""
    secrets: Mapping[str, str]
    environment: Mapping[str, str]
    """Every `HEADRACE_*` setting of its processes."""
    external: frozenset[str]
    """Seams that were given by URL."""
    replicas: Mapping[str, int] = field(default_factory=dict)
    """Instances of a service, where there is more than one."""
    fresh: bool = False
    """True until the owner's password was shown."""

    @property
    def run(self) -> RunFolder:
        return RunFolder(self.folder)

    @property
    def logs(self) -> Path:
        return self.folder / "logs"

    @property
    def env_file(self) -> Path:
        return self.folder / "headrace.env"

    def port(self, name: str, instance: int = 1) -> int:
        return port(name, self.port_base, instance)

    def mark_shown(self) -> None:
        """Remember that the owner's password was shown."""
        (self.folder / "shown").touch()


def data_root() -> Path:
    """Folder of the user's data, by the XDG rules."""
    return Path(os.environ.get("XDG_DATA_HOME") or Path.home() / ".local/share") / "headrace"


def resolve(data: Path | None, profile: Profile | None = None) -> Path:
    """The data folder that a command means.

    Given: that one. Else the default of the profile; without one the default that runs now, else the
    one that was used last, else the embedded.
    """
    if data is not None:
        return data.expanduser().resolve()
    defaults = {name: data_root() / name for name in PROFILES}
    if profile is not None:
        return defaults[profile]
    running = [folder for folder in defaults.values() if RunFolder(folder).locked()]
    if len(running) == 1:
        return running[0]
    used = [folder for folder in defaults.values() if (folder / "headrace.env").exists()]
    return max(used, key=lambda f: (f / "headrace.env").stat().st_mtime, default=defaults["embedded"])


def load(folder: Path) -> Installation:
    """An installation as its last `up` left it.

    Raises:
        InstallationError: where there is none.
    """
    facts = _read_facts(folder)
    file = folder / "headrace.env"
    if facts is None or not file.exists():
        raise InstallationError(
            f"there is no installation in {folder}; start one with `headrace up --data {folder}`"
        )
    return Installation(
        folder=folder,
        profile=facts.profile,
        port_base=facts.port_base,
        mark=facts.mark,
        secrets=_read_secrets(folder),
        environment=read_env(file),
        external=frozenset(facts.external),
        replicas=facts.replicas,
        fresh=not (folder / "shown").exists(),
    )


def prepare(
    folder: Path,
    profile: Profile | None,
    port_base: int | None,
    given: Mapping[str, str] = os.environ,
    *,
    replicas: Mapping[str, int] = MappingProxyType({}),
) -> Installation:
    """Open the installation for `up`, making it where there is none. The caller holds its lock.

    Args:
        profile: None means what it was, or embedded for a new one.
        port_base: None means what it was, or 0.
        given: environment whose `HEADRACE_*` settings go before the generated ones.
        replicas: service to number of its instances, one where not named; holds for this start.

    Raises:
        InstallationError: for a folder of the other profile, or one whose secrets are gone.
    """
    facts = _read_facts(folder)
    if facts and profile not in (None, facts.profile):
        raise InstallationError(
            f"{folder} holds an installation with profile {facts.profile}; its data does not move to "
            f"{profile} by itself. Give another --data, or stop and delete it with `headrace down --wipe`"
        )
    if port_base is None:
        port_base = facts.port_base if facts else 0
    chosen: Profile = facts.profile if facts else profile or "embedded"
    folder.mkdir(parents=True, exist_ok=True, mode=0o700)
    if not facts:
        folder.chmod(0o700)  # a folder that was there already may be open to all
    if facts and not (folder / "secrets.json").exists():
        raise InstallationError(
            f"{folder}/secrets.json is gone; without it the data cannot be read: restore it"
        )
    names = _known_settings()
    own = {name: value for name, value in given.items() if name in names - _PRIVATE and value}
    several = {name: count for name, count in replicas.items() if count > 1}
    usual = _environment(folder, chosen, port_base, _secrets(folder))
    usual["HEADRACE_REPLICAS"] = _addresses(several, port_base)
    external = frozenset(
        seam for seam, name in SEAMS.items() if name in own and own[name] != usual[name]
    )  # the same address as ours is ours: somebody sourced headrace.env
    _refuse_incomplete(external, own, given)
    environment = {**usual, **own}
    if "database" in external and "HEADRACE_DATABASE_REPLICA_URL" not in own:
        environment.pop("HEADRACE_DATABASE_REPLICA_URL", None)
    mark = facts.mark if facts else secrets.token_hex(8)
    facts = _Facts(chosen, port_base, mark, sorted(external), several)
    write_atomically(folder / "installation.json", json.dumps(asdict(facts), indent=1))
    write_env(folder / "headrace.env", environment)
    return load(folder)


def _environment(folder: Path, profile: Profile, base: int, secret: Mapping[str, str]) -> dict[str, str]:
    """Settings of an installation whose servers all run here."""
    stack = profile == "stack"
    sentinels = f"redis+sentinel://{','.join(f'127.0.0.1:{port(name, base)}' for name in SENTINELS)}/{GROUP}"
    values = {
        "DATABASE_URL": f"postgresql://127.0.0.1:{port('postgres', base)}/headrace",
        "DATABASE_OWNER_PASSWORD": secret["hr_owner"],
        "DATABASE_APP_PASSWORD": secret["hr_app"],
        "DATABASE_SYSTEM_PASSWORD": secret["hr_system"],
        "DATABASE_DAGSTER_PASSWORD": secret["hr_dagster"],
        "EVENTLOG_URL": f"kafka://127.0.0.1:{port('kafka', base)}" if stack else "postgresql:",
        "OBJECTS_URL": f"s3://127.0.0.1:{port('minio', base)}" if stack else f"file://{folder / 'objects'}",
        "CACHE_URL": sentinels if stack else f"redis://127.0.0.1:{port('valkey', base)}/0",
        "CACHE_PASSWORD": secret["cache"],
        "INTERNAL_KEY": secret["internal_key"],
        "FIELD_KEY": secret["field_key"],
        "WEB_KEY": secret["web_key"],
        "PAGES_KEY": secret["pages_key"],
        "JWT_PRIVATE_KEY_FILE": str(folder / "jwt.pem"),
        "PORT_BASE": str(base),
        "GATEWAY_URL": f"http://127.0.0.1:{port('gateway', base)}",
        "USERS_URL": f"http://127.0.0.1:{port('users', base)}",
        "BILLING_URL": f"http://127.0.0.1:{port('billing', base)}",
        "AGENTS_URL": f"http://127.0.0.1:{port('agents', base)}",
        "MEMORY_URL": f"http://127.0.0.1:{port('memory', base)}",
        "LOOKUP_URL": f"http://127.0.0.1:{port('lookup', base)}",
        "RELAY_URL": f"http://127.0.0.1:{port('relay', base)}",
        "MEMORY_GRPC": f"127.0.0.1:{port('memory-grpc', base)}",
        "WS_URL": f"http://127.0.0.1:{port('ws', base)}",
        "EXTRACTIVE_URL": f"http://127.0.0.1:{port('extractive', base)}",
        "WEB_URL": f"http://127.0.0.1:{port('web', base)}",
        "VECTORS_URL": f"http://127.0.0.1:{port('milvus', base)}",
        "QUEUE_URL": f"amqp://127.0.0.1:{port('rabbitmq', base)}/{VHOST}" if stack else "postgresql:",
        "SPOOL_DIR": str(folder / "spool"),
        "USAGE_SPOOL_DIR": str(folder / "usage-spool"),
        "MAIL_DIR": str(folder / "mail"),
        "STATE_DIR": str(folder / "state"),
        "OWNER_EMAIL": OWNER_EMAIL,
        "OWNER_PASSWORD": secret["owner"],
    }
    if stack:
        values |= {
            "DATABASE_REPLICA_URL": f"postgresql://127.0.0.1:{port('postgres-replica', base)}/headrace",
            "OBJECTS_ACCESS_KEY": secret["minio_user"],
            "OBJECTS_SECRET_KEY": secret["minio_password"],
            "QUEUE_USER": secret["rabbitmq_user"],
            "QUEUE_PASSWORD": secret["rabbitmq_password"],
        }
    return {f"HEADRACE_{name}": value for name, value in values.items()}


def _addresses(replicas: Mapping[str, int], base: int) -> str:
    """HEADRACE_REPLICAS: every instance but the first, whose address is a setting of its own."""
    return ";".join(
        f"{name}=" + ",".join(f"http://127.0.0.1:{port(name, base, n)}" for n in range(2, count + 1))
        for name, count in sorted(replicas.items())
    )


def _refuse_incomplete(external: frozenset[str], own: Mapping[str, str], given: Mapping[str, str]) -> None:
    """A server of somebody else has its own credentials; ours would only be refused by it later."""
    needed = [name for seam in external for name in _CREDENTIALS.get(seam, ())]
    if "database" in external and given.get("HEADRACE_DATABASE_ADMIN_URL"):
        needed = [name for name in needed if not name.startswith("HEADRACE_DATABASE_")]
    if "objects" in external and own[SEAMS["objects"]].startswith("file:"):
        needed = [name for name in needed if not name.startswith("HEADRACE_OBJECTS_")]
    if "queue" in external and own[SEAMS["queue"]].startswith("postgresql:"):
        needed = [name for name in needed if not name.startswith("HEADRACE_QUEUE_")]
    if missing := sorted(name for name in needed if name not in own):
        urls = ", ".join(SEAMS[seam] for seam in sorted(external))
        raise InstallationError(f"{urls} is given, so give its credentials too: {', '.join(missing)}")


def _secrets(folder: Path) -> dict[str, str]:
    """Read the generated secrets, adding what a newer version needs."""
    current = _read_secrets(folder) if (folder / "secrets.json").exists() else {}
    wanted = {
        **{role: secrets.token_hex(24) for role in _DATABASE_ROLES},
        "cache": secrets.token_hex(24),
        "minio_user": f"headrace-{secrets.token_hex(4)}",
        "minio_password": secrets.token_hex(24),
        "rabbitmq_user": f"headrace-{secrets.token_hex(4)}",
        "rabbitmq_password": secrets.token_hex(24),
        "minio_kms_key": base64.b64encode(secrets.token_bytes(32)).decode(),
        "internal_key": secrets.token_hex(32),
        "web_key": secrets.token_hex(32),
        "pages_key": secrets.token_hex(32),
        "field_key": f"1:{secrets.token_hex(32)}",
        "owner": secrets.token_urlsafe(15),
    }
    merged = {**wanted, **current}
    if merged != current:
        write_atomically(folder / "secrets.json", json.dumps(merged, indent=1))
    if not (folder / "jwt.pem").exists():
        pem = Ed25519PrivateKey.generate().private_bytes(
            serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
        )
        write_atomically(folder / "jwt.pem", pem.decode())
    return merged


def _read_secrets(folder: Path) -> dict[str, str]:
    found: dict[str, str] = json.loads((folder / "secrets.json").read_text())
    return found


@dataclass(frozen=True)
class _Facts:
    """`installation.json`."""

    profile: Profile
    port_base: int
    mark: str
    external: list[str]
    replicas: dict[str, int] = field(default_factory=dict)


def _read_facts(folder: Path) -> _Facts | None:
    try:
        return _Facts(**json.loads((folder / "installation.json").read_text()))
    except FileNotFoundError:
        return None
    except (ValueError, TypeError):
        raise InstallationError(f"{folder}/installation.json is damaged; restore it from a backup") from None


def _known_settings() -> set[str]:
    classes: tuple[type[core_settings.Settings], ...] = (*core_settings.ALL, LauncherSettings)
    return {f"HEADRACE_{field.upper()}" for kind in classes for field in kind.model_fields}


def write_env(file: Path, environment: Mapping[str, str]) -> None:
    """`NAME=value` a line, quoted so that a shell and `read_env` read the same."""
    lines = [f"{name}={shlex.quote(value)}" for name, value in environment.items()]
    write_atomically(file, "# Written by `headrace up`; secret.\n" + "\n".join(lines) + "\n")


def read_env(file: Path) -> dict[str, str]:
    """Values of a file that `write_env` wrote."""
    pairs = (word.partition("=") for word in shlex.split(file.read_text(), comments=True))
    return {name: value for name, _, value in pairs}
