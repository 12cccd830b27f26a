"""Apache Kafka 4.3, one broker and controller in one process on loopback."""

import base64
import os
import shutil
import socket
import struct
import subprocess
import uuid
from pathlib import Path
from string import Template

from deploy.component import Component

_HERE = Path(__file__).parent
# one client compiler and the serial collector: half the memory and a third of the start of the defaults
_JVM = ("-XX:+UseSerialGC", "-XX:TieredStopAtLevel=1")
_LOGS, _FRESH = "data", "data.formatting"


def kafka(data: Path, port: int, controller_port: int, *, java: Path, jars: Path) -> Component:
    """The broker at `port`. Its storage is formatted once, in `data`/kafka; ports may change between starts.

    A start after SIGKILL takes 3 s longer: the controller waits for the dead broker's session to end.
    """
    folder = data / "kafka"
    environment = {"PATH": os.environ.get("PATH", ""), "LC_ALL": "C.UTF-8", "TZ": "UTC", "HOME": str(folder)}
    java_command = (str(java), *_JVM, "-cp", f"{jars}/*")

    def write_settings(name: str, logs: str) -> None:
        template = Template((_HERE / "server.properties").read_text())
        text = template.substitute(port=port, controller_port=controller_port, folder=logs)
        (folder / name).write_text(text)

    def prepare() -> None:
        folder.mkdir(parents=True, exist_ok=True, mode=0o700)
        shutil.copy(_HERE / "broker-log4j2.properties", folder)
        write_settings("server.properties", _LOGS)
        if (folder / _LOGS / "meta.properties").exists():
            return
        shutil.copy(_HERE / "tools-log4j2.properties", folder)
        write_settings("format.properties", _FRESH)
        shutil.rmtree(folder / _FRESH, ignore_errors=True)
        done = subprocess.run(
            [*java_command, "-Xmx128m", "-Dlog4j2.configurationFile=tools-log4j2.properties",
             "kafka.tools.StorageTool", "format", "-t", new_cluster_id(), "-c", "format.properties"],
            cwd=folder, env=environment, capture_output=True, text=True, check=False,
        )  # fmt: skip
        if done.returncode != 0:
            raise RuntimeError(f"Kafka could not format {folder / _LOGS}: {done.stderr[-2000:]}")
        shutil.rmtree(folder / _LOGS, ignore_errors=True)
        (folder / _FRESH).rename(folder / _LOGS)

    return Component(
        name="kafka",
        argv=(*java_command, "-Xms64m", "-Xmx256m", "-XX:+ExitOnOutOfMemoryError",
              "-Dlog4j2.configurationFile=broker-log4j2.properties", "kafka.Kafka", "server.properties"),
        env=environment,
        cwd=folder,
        address=f"127.0.0.1:{port}",
        prepare=prepare,
        ready=lambda: answers(port),
        # A controlled shutdown writes its logs out: on two busy cores that took longer than 15 s once.
        stop_grace=30,
    )  # fmt: skip


def new_cluster_id() -> str:
    """22 characters of URL-safe base64, as Kafka draws them; never one that looks like an option."""
    while True:
        text = base64.urlsafe_b64encode(uuid.uuid4().bytes).decode().rstrip("=")
        if not text.startswith("-"):
            return text


_CORRELATION = 0x48454144
# request size, API 3 (Metadata) version 1, correlation id, no client id, an empty list of topics
_METADATA = struct.pack(">ihhihi", 14, 3, 1, _CORRELATION, -1, 0)


def answers(port: int) -> bool:
    """True once the broker answers for metadata and counts itself alive (is no longer fenced)."""
    try:
        with socket.create_connection(("127.0.0.1", port), timeout=2) as connection:
            connection.sendall(_METADATA)
            with connection.makefile("rb") as answer:
                head = answer.read(12)
    except OSError:
        return False
    if len(head) < 12:
        return False
    _, correlation, brokers = struct.unpack(">iii", head)
    return bool(correlation == _CORRELATION and brokers > 0)
