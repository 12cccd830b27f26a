"""Apache Kafka's jars through Maven, checked against recorded hashes."""

import hashlib
import os
import re
import shutil
import subprocess
from functools import cache
from pathlib import Path

from deploy.provision import trust, wheels
from deploy.provision.cache import Report, existing, filled, remove, root
from deploy.provision.process import ProvisioningError, run

_RECIPE = Path(__file__).parents[1] / "servers" / "kafka"
POM, HASHES = _RECIPE / "pom.xml", _RECIPE / "jars.sha256"
_JAVA_AT_LEAST = 17


def version() -> str:
    """Kafka's version in the pom."""
    found = re.search(r"<kafka\.version>(.+?)</kafka\.version>", POM.read_text())
    if found is None:
        raise ProvisioningError(f"{POM} names no kafka.version")
    return found[1]


def find_java() -> Path | None:
    """A Java of at least 17: `$JAVA_HOME`, PATH, or the wheel in the cache."""
    home = os.environ.get("JAVA_HOME")
    for candidate in (f"{home}/bin/java" if home else None, shutil.which("java")):
        if candidate and _java_version(candidate) >= _JAVA_AT_LEAST:
            return Path(candidate)
    return wheels.cached(wheels.JRE)


def find_jars() -> Path | None:
    """The folder of jars where it is whole."""
    return existing(_folder())


def get_jars(java: Path, report: Report) -> Path:
    """Resolve the pom into the cache; needs `mvn` on PATH.

    Raises:
        ProvisioningError: where Maven fails or a jar is not the recorded one.
    """
    return filled(_folder(), lambda folder: _resolve(folder, java, report), report)


def _resolve(folder: Path, java: Path, report: Report) -> None:
    report(f"Kafka {version()}: fetching its jars (about 50 MB)")
    repository = root() / "maven"
    repository.mkdir(exist_ok=True)
    environment = {**os.environ, "JAVA_HOME": str(java.resolve().parents[1])}
    if java == wheels.cached(wheels.JRE):
        environment["JDK_JAVA_OPTIONS"] = trust.options_of_java(repository)
    run(
        ["mvn", "-B", "-C", "-f", POM, f"-Dmaven.repo.local={repository}", "dependency:copy-dependencies",
         "-DincludeScope=runtime", f"-DoutputDirectory={folder}"],
        label=f"Kafka {version()}", report=report, unit="steps of Maven",
        env=environment,
    )  # fmt: skip
    check(folder)
    remove(repository)


def check(folder: Path) -> None:
    """Compare the jars with the recorded SHA-256 sums.

    Raises:
        ProvisioningError: naming the jars that are missing, unexpected or different.
    """
    wanted = {name: digest for digest, name in map(str.split, HASHES.read_text().splitlines())}
    found = {jar.name: hashlib.sha256(jar.read_bytes()).hexdigest() for jar in folder.glob("*.jar")}
    wrong = sorted(name for name in wanted.keys() | found.keys() if wanted.get(name) != found.get(name))
    if wrong:
        raise ProvisioningError(f"these jars are not the ones recorded in {HASHES}: {', '.join(wrong)}")


def _folder() -> str:
    return f"kafka-{version()}-{hashlib.sha256(POM.read_bytes()).hexdigest()[:8]}"


@cache
def _java_version(java: str) -> int:
    try:
        answer = subprocess.run([java, "-version"], capture_output=True, text=True, check=False, timeout=30)
    except OSError:
        return 0
    found = re.search(r'version "(?:1\.)?(\d+)', answer.stderr)
    return int(found[1]) if found else 0
