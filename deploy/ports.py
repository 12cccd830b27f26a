"""Where everything listens on one machine; `--port-base` is added to all of them.

Numbers differ from the vendors' own, so that Headrace starts beside a PostgreSQL or Redis that is
already there.
"""

from collections.abc import Mapping
from types import MappingProxyType

USUAL: Mapping[str, int] = MappingProxyType(
    {
        "gateway": 8080,
        "ws": 8081,
        "users": 8001,
        "agents": 8002,
        "memory": 8004,
        "memory-grpc": 8014,
        "billing": 8005,
        "relay": 8009,
        "extractive": 8010,
        "lookup": 8011,
        "web": 3000,
        "dagster-web": 3070,
        "dagster-code": 3071,
        "postgres": 5532,
        "postgres-replica": 5533,
        "valkey": 6479,
        "redis": 6479,
        "kafka": 9192,
        "kafka-controller": 9193,
        "minio": 9100,
        "rabbitmq": 5772,
        "rabbitmq-dist": 5773,
        "rabbitmq-names": 5774,
        "redis-replica-1": 6480,
        "redis-replica-2": 6481,
        "sentinel-1": 6579,
        "sentinel-2": 6580,
        "sentinel-3": 6581,
        "milvus": 7630,
    }
)

LARGEST_BASE = 65_535 - max(USUAL.values())


MOST_REPLICAS = 9
_STEP = 100


def port(name: str, base: int, instance: int = 1) -> int:
    """The port of `name` in an installation with this base; each further instance is 100 above.

    Raises:
        ValueError: where the base shifts it beyond 65535.
    """
    number = USUAL[name] + base + _STEP * (instance - 1)
    if not 0 < number < 65536:
        raise ValueError(f"--port-base {base} puts {name} on port {number}; use one from 0 to {LARGEST_BASE}")
    return number
