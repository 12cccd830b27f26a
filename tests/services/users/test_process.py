"""The process: what it refuses to start with, what it never logs, how it ends."""

import json
import signal
import subprocess
from pathlib import Path

import pytest

from core.settings import CacheSettings, DatabaseSettings
from services.users import keys
from tests.servers import free_port, start
from tests.services.process import environment, service
from tests.services.users.conftest import Caller, Running, Tenant


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("HEADRACE_DATABASE_APP_PASSWORD", "postgres"),
        ("HEADRACE_CACHE_PASSWORD", " Changeme "),
        ("HEADRACE_INTERNAL_KEY", ""),
        ("HEADRACE_FIELD_KEY", "admin"),
    ],
)
def test_known_default_secrets_end_the_start(
    postgres: DatabaseSettings, valkey: CacheSettings, tmp_path: Path, name: str, value: str
) -> None:
    variables = environment(tmp_path, postgres, valkey, users_port=free_port(), gateway_port=free_port())
    component = service("users", free_port(), {**variables, name: value})
    ended = subprocess.run(
        component.argv, env=dict(component.env), cwd=component.cwd, capture_output=True, text=True, timeout=60,
        check=False,
    )  # fmt: skip
    assert ended.returncode == 2
    assert f"setting {name}: Value error, is a known default" in ended.stderr


async def test_no_secret_is_in_the_log(users: Running, owner: Caller, owner_token: str, acme: Tenant) -> None:
    """At level debug, after everything that has a secret was done, well and badly."""
    made = await owner.post(acme.keys, {"name": "k", "scopes": ["usage:read"]})
    rotated = await owner.post(f"{acme.keys}/{made.json['id']}/rotate", {})
    canary = "canary-4f1c9b-password"
    mutilated = keys.generate().text[:-1] + "!"
    assert (await owner.login(canary)).status == 401
    assert (await owner.post("/api/v1/auth/login", {"email": "a@b.c", "password": [canary]})).status == 422
    assert (await owner.post("/api/v1/auth/login", {"email": "a@b.c", canary: canary})).status == 422
    await owner.introspect(mutilated)
    await owner.bearing(canary).get("/api/v1/me")
    await owner.call("GET", "/api/v1/me", headers={"x-headrace-principal": canary})
    secrets = {
        name: value
        for name, value in users.environment.items()
        if name.endswith(("PASSWORD", "_KEY")) and value
    } | {
        "token": owner_token,
        "signature": owner_token.rpartition(".")[2],
        "key": acme.key.split("_")[3],
        "new key": made.json["key"].split("_")[3],
        "rotated key": rotated.json["key"].split("_")[3],
        "what was typed": canary,
        "mutilated key": mutilated.split("_")[3],
        "e-mail": "owner@example.org",
    }
    log = users.log.read_text()
    assert made.json["id"] in log or "request" in log  # it does log these requests
    assert [name for name, value in secrets.items() if value in log] == []


def test_every_line_of_the_log_is_one_json_object(users: Running) -> None:
    for line in users.log.read_text().splitlines():
        assert set(json.loads(line)) == {
            "timestamp", "level", "service", "traceId", "spanId", "message", "data",
        }  # fmt: skip


def test_term_ends_the_process_cleanly(
    postgres: DatabaseSettings, valkey: CacheSettings, tmp_path: Path
) -> None:
    port = free_port()
    variables = environment(tmp_path, postgres, valkey, users_port=port, gateway_port=free_port())
    process = start(service("users", port, variables), tmp_path / "log")
    process.send_signal(signal.SIGTERM)
    assert process.wait(15) == 0
    assert '"error"' not in (tmp_path / "log").read_text()
