"""RabbitMQ killed under its consumers and the relay."""

import secrets
from collections.abc import Iterator

import pytest

from core.queue.rabbitmq import RabbitQueue
from core.settings import DatabaseSettings, QueueSettings
from deploy.provision import Programs
from deploy.servers.rabbitmq import VHOST, names, rabbitmq
from tests.conformance.eventlog.surviving import Server
from tests.conformance.queue.support import Backend
from tests.conformance.queue.surviving import PATIENCE, Surviving
from tests.servers import free_port, running

pytestmark = pytest.mark.stack


@pytest.fixture
def own(
    stack_programs: Programs, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[tuple[Server, QueueSettings]]:
    folder, port, names_port = tmp_path_factory.mktemp("killed-rabbitmq"), free_port(), free_port()
    password = secrets.token_hex(16)
    component = rabbitmq(
        folder,
        port,
        free_port(),
        names_port,
        user="test",
        password=password,
        server=stack_programs.rabbitmq_server,
    )
    with (
        running(names(folder, names_port, program=stack_programs.epmd), folder / "names.log"),
        Server(component, folder / "log").running() as server,
    ):
        yield (
            server,
            QueueSettings(
                queue_url=f"amqp://127.0.0.1:{port}/{VHOST}", queue_user="test", queue_password=password
            ),
        )


@pytest.fixture
def server(own: tuple[Server, QueueSettings]) -> Server:
    return own[0]


@pytest.fixture
def backend(own: tuple[Server, QueueSettings], postgres: DatabaseSettings) -> Backend:
    return Backend(own[1], postgres, lambda: RabbitQueue(own[1], patience=PATIENCE))


class TestSurvivingRabbitMQ(Surviving):
    """Every test comes from the suite."""
