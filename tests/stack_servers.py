"""The real servers of the profile `stack` for tests, each started once a session on first use.

What they need is provisioned when it is missing: a test never leaves a real server out.
"""

import secrets
import sys
from collections.abc import Iterator

import pytest

from core.settings import (
    CacheSettings,
    DatabaseSettings,
    EventLogSettings,
    ObjectSettings,
    QueueSettings,
    VectorSettings,
)
from deploy.provision import Programs, provision
from deploy.servers import postgres_stack
from deploy.servers.kafka import kafka as kafka_server
from deploy.servers.milvus import PORTS as MILVUS_PORTS
from deploy.servers.milvus import TOKEN as MILVUS_TOKEN
from deploy.servers.milvus import milvus as milvus_server
from deploy.servers.minio import minio as minio_server
from deploy.servers.minio import new_kms_key
from deploy.servers.rabbitmq import VHOST
from deploy.servers.rabbitmq import names as rabbitmq_names
from deploy.servers.rabbitmq import rabbitmq as rabbitmq_component
from deploy.servers.redis import redis as redis_component
from tests.servers import database_settings, free_port, free_ports, running


@pytest.fixture(scope="session")
def stack_programs(pytestconfig: pytest.Config) -> Programs:
    """Where the real servers lie; got first where they are missing."""
    if "not stack" in pytestconfig.option.markexpr:
        pytest.fail(
            "asks for a real server by name at run time: give its parameter `marks=pytest.mark.stack`"
        )
    return provision(lambda line: print(line, file=sys.__stderr__, flush=True))


@pytest.fixture(scope="session")
def kafka(stack_programs: Programs, tmp_path_factory: pytest.TempPathFactory) -> Iterator[EventLogSettings]:
    """Apache Kafka, one broker without topics."""
    folder, port = tmp_path_factory.mktemp("kafka"), free_port()
    server = kafka_server(folder, port, free_port(), java=stack_programs.java, jars=stack_programs.kafka_jars)
    with running(server, folder / "log"):
        yield EventLogSettings(eventlog_url=f"kafka://127.0.0.1:{port}")


@pytest.fixture(scope="session")
def minio(stack_programs: Programs, tmp_path_factory: pytest.TempPathFactory) -> Iterator[ObjectSettings]:
    """MinIO without buckets."""
    folder, port = tmp_path_factory.mktemp("minio"), free_port()
    user, password = secrets.token_hex(8), secrets.token_hex(16)
    server = minio_server(
        folder,
        port,
        root_user=user,
        root_password=password,
        kms_key=new_kms_key(),
        server=stack_programs.minio,
    )
    with running(server, folder / "log"):
        yield ObjectSettings(
            objects_url=f"s3://127.0.0.1:{port}", objects_access_key=user, objects_secret_key=password
        )


@pytest.fixture(scope="session")
def redis_server(
    stack_programs: Programs, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[CacheSettings]:
    """An empty Redis."""
    folder, port, password = tmp_path_factory.mktemp("redis"), free_port(), secrets.token_hex(16)
    with running(redis_component(folder, port, password, server=stack_programs.redis_server), folder / "log"):
        yield CacheSettings(cache_url=f"redis://127.0.0.1:{port}/0", cache_password=password)


@pytest.fixture(scope="session")
def rabbitmq(stack_programs: Programs, tmp_path_factory: pytest.TempPathFactory) -> Iterator[QueueSettings]:
    """RabbitMQ, one node without queues."""
    folder, port, names_port = tmp_path_factory.mktemp("rabbitmq"), free_port(), free_port()
    user, password = f"test-{secrets.token_hex(4)}", secrets.token_hex(16)
    names = rabbitmq_names(folder, names_port, program=stack_programs.epmd)
    server = rabbitmq_component(
        folder, port, free_port(), names_port, user=user, password=password,
        server=stack_programs.rabbitmq_server,
    )  # fmt: skip
    with running(names, folder / "names.log"), running(server, folder / "log"):
        yield QueueSettings(
            queue_url=f"amqp://127.0.0.1:{port}/{VHOST}", queue_user=user, queue_password=password
        )


@pytest.fixture(scope="session")
def milvus(stack_programs: Programs, tmp_path_factory: pytest.TempPathFactory) -> Iterator[VectorSettings]:
    """Milvus 2.3.5, empty; `hash` as the model."""
    folder = tmp_path_factory.mktemp("milvus-server")
    server = milvus_server(folder, free_ports(MILVUS_PORTS), server=stack_programs.milvus)
    with running(server, folder / "log"):
        yield VectorSettings(
            vectors_url=f"http://{server.address}", vectors_token=MILVUS_TOKEN, embedding_model="hash"
        )


@pytest.fixture(scope="session")
def postgres15(
    stack_programs: Programs, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[DatabaseSettings]:
    """PostgreSQL 15 with its streaming replica, migrated."""
    folder, port, replica_port = tmp_path_factory.mktemp("postgres15"), free_port(), free_port()
    superuser, replication = secrets.token_hex(16), secrets.token_hex(16)
    binaries = stack_programs.postgres
    primary = postgres_stack.primary(folder, port, superuser, binaries=binaries)
    replica = postgres_stack.replica(
        folder,
        replica_port,
        port,
        superuser_password=superuser,
        replication_password=replication,
        binaries=binaries,
    )
    with running(primary, folder / "primary.log"), running(replica, folder / "replica.log"):
        settings = database_settings(port, superuser)
        yield settings.model_copy(
            update={"database_replica_url": f"postgresql://127.0.0.1:{replica_port}/headrace"}
        )
