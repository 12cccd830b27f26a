"""A data folder: secrets once and for their owner only, URLs that are given, refusals that say what to do."""

import json
import subprocess
from pathlib import Path

import pytest

from deploy.installation import InstallationError, load, prepare, read_env, resolve, write_env
from deploy.ports import USUAL, port
from deploy.supervisor.run_folder import RunFolder


def test_first_and_second_start_have_the_same_secrets(tmp_path: Path) -> None:
    first = prepare(tmp_path, None, None, {})
    second = prepare(tmp_path, None, None, {})
    assert first == second == load(tmp_path)
    assert first.profile == "embedded"
    assert len(set(first.secrets.values())) == len(first.secrets)
    assert prepare(tmp_path / "other", None, None, {}).secrets != first.secrets


def test_secrets_are_readable_by_their_owner_only(tmp_path: Path) -> None:
    (tmp_path / "data").mkdir(mode=0o755)
    installation = prepare(tmp_path / "data", None, None, {})
    for name in ("secrets.json", "headrace.env", "jwt.pem"):
        assert (installation.folder / name).stat().st_mode & 0o777 == 0o600, name
    assert installation.folder.stat().st_mode & 0o777 == 0o700
    for secret in installation.secrets.values():
        assert secret not in (installation.folder / "installation.json").read_text()


def test_the_base_shifts_every_port_and_is_remembered(tmp_path: Path) -> None:
    prepare(tmp_path, None, 1000, {})
    installation = prepare(tmp_path, None, None, {})
    assert installation.port_base == 1000
    assert installation.port("gateway") == 9080
    assert installation.environment["HEADRACE_GATEWAY_URL"] == "http://127.0.0.1:9080"
    assert ":6532/" in installation.environment["HEADRACE_DATABASE_URL"]
    assert prepare(tmp_path, None, 2000, {}).port("gateway") == 10080
    with pytest.raises(ValueError, match="--port-base 60000"):
        port("gateway", 60000)


def test_usual_ports_of_one_profile_differ() -> None:
    for absent in ("valkey", "redis"):
        numbers = [number for name, number in USUAL.items() if name != absent]
        assert len(set(numbers)) == len(numbers)


def test_the_stack_asks_the_sentinels_for_its_cache(tmp_path: Path) -> None:
    stack = prepare(tmp_path / "stack", "stack", 1000, {})
    hosts = ",".join(f"127.0.0.1:{port(f'sentinel-{number}', 1000)}" for number in (1, 2, 3))
    assert stack.environment["HEADRACE_CACHE_URL"] == f"redis+sentinel://{hosts}/headrace"
    embedded = prepare(tmp_path / "embedded", "embedded", 1000, {})
    assert embedded.environment["HEADRACE_CACHE_URL"] == "redis://127.0.0.1:7479/0"


def test_a_server_given_by_url_is_external_until_it_is_not_given(tmp_path: Path) -> None:
    given = {"HEADRACE_EVENTLOG_URL": "kafka://k1:9092,k2:9092", "HEADRACE_PORT": "1", "UNRELATED": "x"}
    installation = prepare(tmp_path, None, None, given)
    assert installation.external == {"eventlog"}
    assert installation.environment["HEADRACE_EVENTLOG_URL"] == "kafka://k1:9092,k2:9092"
    assert "HEADRACE_PORT" not in installation.environment
    assert "UNRELATED" not in installation.environment
    sourced = prepare(tmp_path, None, None, prepare(tmp_path, None, None, {}).environment)
    assert sourced.external == frozenset()
    later = prepare(tmp_path, None, None, {"HEADRACE_EVENTLOG_URL": ""})
    assert later.external == frozenset()
    assert later.environment["HEADRACE_EVENTLOG_URL"] == "postgresql:"


def test_a_replica_of_our_own_is_not_read_for_a_database_elsewhere(tmp_path: Path) -> None:
    stack = prepare(tmp_path, "stack", None, {})
    assert "HEADRACE_DATABASE_REPLICA_URL" in stack.environment
    given = {
        "HEADRACE_DATABASE_URL": "postgresql://db:5432/headrace",
        "HEADRACE_DATABASE_ADMIN_URL": "postgresql://a:b@db/postgres",
    }
    assert "HEADRACE_DATABASE_REPLICA_URL" not in prepare(tmp_path, None, None, given).environment


def test_a_server_given_without_credentials_is_refused(tmp_path: Path) -> None:
    database = {"HEADRACE_DATABASE_URL": "postgresql://db:5432/headrace"}
    with pytest.raises(InstallationError, match=r"HEADRACE_DATABASE_APP_PASSWORD.*HEADRACE_DATABASE_SYSTEM"):
        prepare(tmp_path, None, None, database)
    with pytest.raises(InstallationError, match=r"HEADRACE_CACHE_PASSWORD$"):
        prepare(tmp_path, None, None, {"HEADRACE_CACHE_URL": "redis://cache:6379/0"})
    with pytest.raises(InstallationError, match="HEADRACE_OBJECTS_SECRET_KEY"):
        prepare(tmp_path, None, None, {"HEADRACE_OBJECTS_URL": "s3://minio:9000"})
    prepare(tmp_path, None, None, {"HEADRACE_OBJECTS_URL": "file:///mnt/objects"})
    admin = {"HEADRACE_DATABASE_ADMIN_URL": "postgresql://postgres:x-y-z@db/postgres"}
    external = prepare(tmp_path, None, None, database | admin)
    assert external.external == {"database"}
    assert "x-y-z" not in external.env_file.read_text()


def test_the_other_profile_and_lost_secrets_are_refused(tmp_path: Path) -> None:
    prepare(tmp_path, "embedded", None, {})
    with pytest.raises(InstallationError, match=r"profile embedded.*--data"):
        prepare(tmp_path, "stack", None, {})
    (tmp_path / "secrets.json").unlink()
    with pytest.raises(InstallationError, match=r"secrets\.json is gone"):
        prepare(tmp_path, None, None, {})
    (tmp_path / "installation.json").write_text("{")
    with pytest.raises(InstallationError, match="damaged"):
        load(tmp_path)


def test_a_newer_version_adds_its_secrets_and_keeps_the_others(tmp_path: Path) -> None:
    before = dict(prepare(tmp_path, None, None, {}).secrets)
    older = {name: value for name, value in before.items() if name != "internal_key"}
    (tmp_path / "secrets.json").write_text(json.dumps(older))
    after = prepare(tmp_path, None, None, {}).secrets
    assert {name: after[name] for name in older} == older
    assert len(after["internal_key"]) == 64


def test_nothing_there_names_the_command(tmp_path: Path) -> None:
    with pytest.raises(InstallationError, match="headrace up --data"):
        load(tmp_path)


def test_env_file_reads_the_same_in_a_shell(tmp_path: Path) -> None:
    values = {
        "HEADRACE_A": "plain",
        "HEADRACE_B": "blank 'quote' \"double\" $HOME `x` # no comment",
        "HEADRACE_C": "",
    }
    file = tmp_path / "headrace.env"
    write_env(file, values)
    assert read_env(file) == values
    shell = subprocess.run(
        ["sh", "-c", f'. {file}; printf "%s|%s|%s" "$HEADRACE_A" "$HEADRACE_B" "$HEADRACE_C"'],
        capture_output=True, text=True, check=True,
    )  # fmt: skip
    assert shell.stdout == "|".join(values.values())


def test_default_folder_is_the_one_that_runs_else_the_last_used(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("XDG_DATA_HOME", str(tmp_path))
    embedded, stack = tmp_path / "headrace/embedded", tmp_path / "headrace/stack"
    assert resolve(None) == embedded
    assert resolve(None, "stack") == stack
    prepare(stack, "stack", None, {})
    assert resolve(None) == stack
    prepare(embedded, "embedded", None, {})
    run = RunFolder(stack)
    run.lock()
    assert resolve(None) == stack
    run.unlock()
    assert resolve(tmp_path / "x") == tmp_path / "x"
