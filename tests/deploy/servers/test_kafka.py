"""Kafka by the recipe: formatted once, nothing lost by SIGKILL, ports are only arguments."""

import asyncio
import signal
import socket
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from aiokafka import AIOKafkaConsumer, AIOKafkaProducer, TopicPartition
from aiokafka.admin import AIOKafkaAdminClient, NewTopic, RecordsToDelete

from deploy.component import Component
from deploy.provision import Programs
from deploy.servers.kafka import answers, kafka, new_cluster_id
from tests.deploy.servers.conftest import Run
from tests.servers import free_port, kill, stop, wait_for

Broker = Callable[[str], Component]
PARTITION = TopicPartition("numbers", 0)


@pytest.fixture
def broker(stack_programs: Programs, tmp_path: Path) -> Broker:
    """Makes the recipe of an installation of that name, on new ports with each call."""

    def make(name: str) -> Component:
        return kafka(
            tmp_path / name,
            free_port(),
            free_port(),
            java=stack_programs.java,
            jars=stack_programs.kafka_jars,
        )

    return make


async def make_topic(address: str) -> None:
    admin = AIOKafkaAdminClient(bootstrap_servers=address)
    await admin.start()
    try:
        answer = await admin.create_topics([NewTopic(PARTITION.topic, 1, 1)])
        assert [error[1] for error in answer.topic_errors] == [0]
    finally:
        await admin.close()


async def write(address: str, numbers: range) -> None:
    producer = AIOKafkaProducer(
        bootstrap_servers=address, acks="all", enable_idempotence=True, compression_type="zstd"
    )
    await producer.start()
    try:
        sent = [await producer.send(PARTITION.topic, str(number).encode(), partition=0) for number in numbers]
        await asyncio.gather(*sent)
    finally:
        await producer.stop()


async def read(address: str, end: int) -> list[int]:
    """All numbers from the low watermark up to offset `end`."""
    consumer = AIOKafkaConsumer(bootstrap_servers=address, auto_offset_reset="earliest", fetch_max_wait_ms=50)
    await consumer.start()
    try:
        consumer.assign([PARTITION])
        assert (await consumer.end_offsets([PARTITION]))[PARTITION] == end
        await consumer.seek_to_beginning(PARTITION)
        found: list[int] = []
        while await consumer.position(PARTITION) < end:
            for records in (await consumer.getmany(timeout_ms=500)).values():
                found.extend(int(record.value) for record in records)
        return found
    finally:
        await consumer.stop()


async def purge(address: str, before: int) -> None:
    admin = AIOKafkaAdminClient(bootstrap_servers=address)
    await admin.start()
    try:
        assert await admin.delete_records({PARTITION: RecordsToDelete(before_offset=before)}) == {
            PARTITION: before
        }
    finally:
        await admin.close()


async def test_sigkill_loses_neither_records_nor_purge_and_ports_may_change(
    broker: Broker, run: Run, tmp_path: Path
) -> None:
    first = broker("one")
    process = run(first)
    cluster = (tmp_path / "one" / "kafka" / "data" / "meta.properties").read_text()
    await make_topic(first.address)
    await write(first.address, range(1000))
    await purge(first.address, 400)
    checkpoint = tmp_path / "one" / "kafka" / "data" / "log-start-offset-checkpoint"
    wait_for(lambda: "numbers 0 400" in checkpoint.read_text(), seconds=10)
    kill(process)

    second = broker("one")
    assert second.address != first.address
    process = run(second)
    assert (tmp_path / "one" / "kafka" / "data" / "meta.properties").read_text() == cluster
    assert await read(second.address, 1000) == list(range(400, 1000))
    await write(second.address, range(1000, 1100))
    stop(second, process)
    assert process.returncode == 128 + signal.SIGTERM, "stopped by itself, not by the final SIGKILL"


async def test_two_installations_run_side_by_side(broker: Broker, run: Run) -> None:
    one, two = broker("one"), broker("two")
    run(one)
    run(two)
    await make_topic(one.address)
    await make_topic(two.address)
    await write(one.address, range(3))
    assert await read(one.address, 3) == [0, 1, 2]
    assert await read(two.address, 0) == []


def test_interrupted_format_is_begun_again(broker: Broker, tmp_path: Path) -> None:
    left_over = tmp_path / "one" / "kafka" / "data.formatting"
    left_over.mkdir(parents=True)
    (left_over / "meta.properties").write_text("version=1\ncluster.id=half\nnode.id=1\n")
    component = broker("one")
    component.prepare()
    formatted = (tmp_path / "one" / "kafka" / "data" / "meta.properties").read_text()
    assert "half" not in formatted
    assert not left_over.exists()
    component.prepare()
    assert (tmp_path / "one" / "kafka" / "data" / "meta.properties").read_text() == formatted


def test_not_ready_where_nothing_or_somebody_else_listens() -> None:
    assert not answers(free_port())
    with socket.create_server(("127.0.0.1", 0)) as listener, ThreadPoolExecutor() as pool:

        def serve_http() -> None:
            connection, _ = listener.accept()
            with connection:
                connection.recv(100)
                connection.sendall(b"HTTP/1.1 400 Bad Request\r\n")

        served = pool.submit(serve_http)
        assert not answers(listener.getsockname()[1])
        served.result()


def test_cluster_ids_never_look_like_an_option() -> None:
    drawn = [new_cluster_id() for _ in range(2000)]
    assert all(len(one) == 22 and not one.startswith("-") for one in drawn)
    assert len(set(drawn)) == len(drawn)
