"""What is missing is told with the way to get it, before anything is fetched."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from deploy.provision import SERVERS, MissingError, Programs, kafka, missing, programs
from deploy.provision.process import ProvisioningError, run
from tests.conftest import REPOSITORY


def test_a_bare_machine_gets_a_list_and_nothing_is_fetched(tmp_path: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-m", "deploy.provision"], cwd=REPOSITORY, capture_output=True, text=True, check=False,
        env={"PATH": str(tmp_path), "HOME": str(tmp_path), "XDG_CACHE_HOME": str(tmp_path / "cache")},
    )  # fmt: skip
    assert done.returncode == 1
    assert "redis-server (for redis): `apt-get install redis-server`" in done.stderr
    assert "Maven (for kafka): `apt-get install maven`" in done.stderr
    assert "Traceback" not in done.stderr
    assert not (tmp_path / "cache").exists()


def test_missing_names_only_what_the_servers_need(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.delenv("JAVA_HOME", raising=False)
    assert {need.server for need in missing()} >= {"redis", "kafka", "minio"}
    assert {need.name for need in missing(["milvus"])} == {"Milvus 2.3.5"}
    assert {need.name for need in missing(["minio"])} == {"MinIO", "Go 1.24 or newer"}
    assert {need.name for need in missing(["kafka"])} == {"Java 17 or newer", "Kafka 4.3.1", "Maven"}
    assert missing([]) == []
    with pytest.raises(MissingError, match="MinIO"):
        programs(["minio"])
    with pytest.raises(MissingError, match="redis-server"):
        _ = programs([]).redis_server


def test_all_is_found_once_it_is_provisioned(stack_programs: Programs) -> None:
    assert missing(SERVERS) == []
    for path in (
        stack_programs.java,
        stack_programs.minio,
        stack_programs.milvus,
        stack_programs.redis_server,
    ):
        assert os.access(path, os.X_OK)
    assert (stack_programs.postgres / "pg_basebackup").exists()


def test_an_altered_jar_is_refused(stack_programs: Programs, tmp_path: Path) -> None:
    for jar in stack_programs.kafka_jars.glob("*.jar"):
        (tmp_path / jar.name).symlink_to(jar)
    kafka.check(tmp_path)
    altered = tmp_path / "kafka-clients-4.3.1.jar"
    data = altered.read_bytes()
    altered.unlink()
    altered.write_bytes(data[:-1] + bytes([data[-1] ^ 1]))
    with pytest.raises(ProvisioningError, match=r"jars\.sha256: kafka-clients-4\.3\.1\.jar$"):
        kafka.check(tmp_path)
    altered.unlink()
    shutil.copy(stack_programs.kafka_jars / "kafka-clients-4.3.1.jar", tmp_path)
    shutil.copy(altered, tmp_path / "zz-stranger.jar")
    with pytest.raises(ProvisioningError, match=r"zz-stranger\.jar$"):
        kafka.check(tmp_path)


def test_a_failing_command_tells_the_end_of_its_output() -> None:
    with pytest.raises(
        ProvisioningError, match=r"(?s)thing: `sh` failed with status 3:.*line 39\nwhat went wrong$"
    ):
        run(
            ["sh", "-c", "i=0; while [ $i -lt 40 ]; do echo line $i; i=$((i+1)); done; echo what went wrong >&2; exit 3"],
            label="thing", report=print, env=os.environ,
        )  # fmt: skip
