"""MinIO on one local drive: any S3 client reaches it, objects are encrypted where a bucket asks for it."""

import base64
import http.client
import os
import secrets
from pathlib import Path

from deploy.component import Component


def minio(
    data: Path, port: int, *, root_user: str, root_password: str, kms_key: str, server: Path
) -> Component:
    """The server at `port` with its drive in `data`/minio.

    `kms_key` (`new_kms_key()`) encrypts objects at rest and must stay the same for the life of the
    drive; the root password (8 characters or more) may change at any start. `server` is the program.
    """
    folder = data / "minio"

    def prepare() -> None:
        (folder / "drive").mkdir(parents=True, exist_ok=True)
        folder.chmod(0o700)

    return Component(
        name="minio",
        argv=(str(server), "server", str(folder / "drive"), "--quiet", "--address", f"127.0.0.1:{port}"),
        env={
            "PATH": os.environ.get("PATH", ""),
            "HOME": str(folder),
            "MINIO_ROOT_USER": root_user,
            "MINIO_ROOT_PASSWORD": root_password,
            "MINIO_KMS_SECRET_KEY": f"headrace:{kms_key}",
            "MINIO_BROWSER": "off",
            "MINIO_UPDATE": "off",
            "MINIO_PROMETHEUS_AUTH_TYPE": "public",
        },
        cwd=folder,
        address=f"http://127.0.0.1:{port}",
        prepare=prepare,
        ready=lambda: answers(port),
    )


def new_kms_key() -> str:
    """32 random bytes in base64."""
    return base64.b64encode(secrets.token_bytes(32)).decode()


def answers(port: int) -> bool:
    """True once the server says that it takes requests."""
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=2)
    try:
        connection.request("GET", "/minio/health/ready")
        return connection.getresponse().status == http.client.OK
    except (OSError, http.client.HTTPException):
        return False
    finally:
        connection.close()
