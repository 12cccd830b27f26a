"""MinIO by the recipe: versions, encryption and objects outlive SIGKILL and a change of port and password."""

import io
import secrets
from pathlib import Path

import pytest
from minio import Minio, S3Error
from minio.commonconfig import ENABLED
from minio.sse import SseS3
from minio.versioningconfig import VersioningConfig

from deploy.component import Component
from deploy.provision import Programs
from deploy.servers.minio import answers, minio, new_kms_key
from tests.deploy.servers.conftest import Run
from tests.servers import free_port, kill, stop


def client(port: int, password: str) -> Minio:
    return Minio(f"127.0.0.1:{port}", "headrace", password, secure=False, region="us-east-1")


def put(store: Minio, key: str, data: bytes) -> str | None:
    return store.put_object("things", key, io.BytesIO(data), len(data), sse=SseS3()).version_id


def get(store: Minio, key: str, version: str | None = None) -> bytes:
    with store.get_object("things", key, version_id=version) as response:
        return bytes(response.read())


def test_sigkill_loses_no_object_and_password_may_change(
    stack_programs: Programs, run: Run, tmp_path: Path
) -> None:
    key = new_kms_key()
    marker = secrets.token_bytes(200_000)

    def server(port: int, password: str, name: str = "one") -> Component:
        return minio(
            tmp_path / name, port, root_user="headrace", root_password=password, kms_key=key,
            server=stack_programs.minio,
        )  # fmt: skip

    port, password = free_port(), secrets.token_hex(16)
    process = run(server(port, password))
    store = client(port, password)
    store.make_bucket("things")
    store.set_bucket_versioning("things", VersioningConfig(ENABLED))
    first, second = put(store, "a", marker), put(store, "a", b"newer")
    assert first != second
    drive = tmp_path / "one" / "minio" / "drive"
    assert not any(marker[:64] in part.read_bytes() for part in drive.glob("things/**/*") if part.is_file())
    kill(process)
    assert not answers(port)

    port, password = free_port(), secrets.token_hex(16)
    process = run(server(port, password))
    store = client(port, password)
    assert get(store, "a") == b"newer"
    assert get(store, "a", first) == marker

    other_port, other_password = free_port(), secrets.token_hex(16)
    run(server(other_port, other_password, "two"))
    assert not client(other_port, other_password).bucket_exists("things")
    with pytest.raises(S3Error) as refused:
        client(other_port, password).list_buckets()
    assert refused.value.code == "SignatureDoesNotMatch"

    stop(server(port, password), process)
    assert process.returncode == 0, "stopped by itself, not by the final SIGKILL"
