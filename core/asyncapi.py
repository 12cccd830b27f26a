"""AsyncAPI 3 document of the topics and queues, from their registry and the contracts of their payloads.

`document()` is the whole platform (`docs/asyncapi.json`); with a service's name it is what that
service sends and receives (its `/asyncapi.json`).
"""

from collections.abc import Mapping
from dataclasses import dataclass
from importlib.metadata import version
from typing import Any, Final

import msgspec

from core.contracts.agents import AgentEvent, AgentTask
from core.contracts.audit import AuditEvent
from core.contracts.knowledge import DocumentJob
from core.contracts.run_events import PAYLOADS
from core.contracts.usage import Checkpoint, UsageEvent, VoidEvent
from core.topology import QUEUES, TOPICS, QueueFamily, Topic, dead_letters_of

RUN_EVENT: Final = "agent_event"
"""The contract whose `data` depends on its `type`."""
CONTRACTS: Final[Mapping[str, tuple[type[msgspec.Struct], ...]]] = {
    RUN_EVENT: (AgentEvent,),
    "agent_task": (AgentTask,),
    "audit_event": (AuditEvent,),
    "document_job": (DocumentJob,),
    "usage_event": (UsageEvent, VoidEvent, Checkpoint),
}
"""Payload contracts by the name that the topology gives them, several where records have several types; the
others are any JSON object."""


@dataclass(frozen=True, slots=True)
class Part:
    """What a service sends and receives: names of `TOPICS` and `QUEUES`."""

    sends: tuple[str, ...] = ()
    receives: tuple[str, ...] = ()


PARTS: Final[Mapping[str, Part]] = {
    "gateway": Part(sends=("usage.records",)),
    "users": Part(sends=("audit.logs",)),
    "agents": Part(
        sends=("agent.events", "agent.tasks", "usage.records", "audit.logs", "document.index"),
        receives=("agent.tasks", "agent.events"),
    ),
    "memory": Part(
        sends=("document.index", "usage.records", "audit.logs"), receives=("document.index", "agent.events")
    ),
    "billing": Part(sends=("usage.records", "audit.logs"), receives=("usage.records",)),
    "ws": Part(receives=("agent.events",)),
}
"""Services that take part; the relay carries for all."""

_TRACE: Final = {
    "traceparent": {"type": "string", "description": "W3C trace context of the sender"},
    "tracestate": {"type": "string"},
}
_QUEUE_HEADERS: Final = {
    **_TRACE,
    "x-tenant": {"type": "string"},
    "x-family": {"type": "string", "description": "the queue family"},
    "x-first-seen": {"type": "string", "format": "date-time", "description": "when it was enqueued"},
    "x-attempt": {"type": "string", "pattern": "^[1-9][0-9]*$", "description": "1 where it is missing"},
    "x-reason": {"type": "string", "description": "why the last attempt failed"},
    "x-died-at": {"type": "string", "format": "date-time", "description": "only among dead letters"},
}


def document(service: str | None = None) -> dict[str, Any]:
    """The AsyncAPI document of the platform, or of one service.

    Raises:
        KeyError: for a service that is not in `PARTS`.
    """
    parts = PARTS if service is None else {service: PARTS[service]}
    named = {name for part in parts.values() for name in (*part.sends, *part.receives)}
    wanted = [name for name in (*TOPICS, *QUEUES) if service is None or name in named]
    payloads = sorted({(TOPICS.get(name) or QUEUES[name]).payload for name in wanted})
    return {
        "asyncapi": "3.0.0",
        "info": {
            "title": f"Headrace {service or 'messages'}",
            "version": version("headrace"),
            "description": "Topics of the event log (Kafka) and queues (RabbitMQ). The embedded profile keeps "
            "both in PostgreSQL, with the same names, keys and payloads.",
        },
        "defaultContentType": "application/json",
        "channels": {name: _channel(name) for name in wanted},
        "operations": {
            f"{who}.{verb}.{name}": {
                "action": verb,
                "channel": {"$ref": f"#/channels/{_pointer(name)}"},
                "messages": [{"$ref": f"#/channels/{_pointer(name)}/messages/message"}],
            }
            for who, part in parts.items()
            for verb, names in (("send", part.sends), ("receive", part.receives))
            for name in names
        },
        "components": {
            "messages": {
                f"{kind}.{payload}": _message(kind, payload) for kind, payload in sorted(_kinds(wanted))
            },
            "schemas": schemas(payloads),
        },
    }


def schemas(payloads: list[str]) -> dict[str, Any]:
    """JSON Schema of each payload, and of what they are made of."""
    known = [payload for payload in payloads if payload in CONTRACTS]
    told = PAYLOADS if RUN_EVENT in known else {}
    references, components = msgspec.json.schema_components(
        [*told.values(), *(each for payload in known for each in CONTRACTS[payload])],
        ref_template="#/components/schemas/{name}",
    )
    left = iter(references)
    data = {type: next(left) for type in told}
    named = {payload: [next(left) for _ in CONTRACTS[payload]] for payload in known}
    found: dict[str, Any] = _portable(
        {**components, **{name: {"oneOf": each} if each[1:] else each[0] for name, each in named.items()}}
    )
    if data:
        found[RUN_EVENT] = {"allOf": [found[RUN_EVENT]], "oneOf": [_typed(*one) for one in data.items()]}
    for payload in payloads:
        found.setdefault(payload, {"type": "object"})
    return dict(sorted(found.items()))


def _typed(type: str, data: Mapping[str, Any]) -> dict[str, Any]:
    """An event of this type has this data."""
    return {"title": type, "properties": {"type": {"const": type}, "data": data}}


def _portable(schema: Any) -> Any:
    """Patterns as JSON Schema (ECMA 262) writes them: Python's `\\Z` is nothing there."""
    if isinstance(schema, dict):
        return {
            name: value.replace(r"\Z", "$")
            if name == "pattern" and isinstance(value, str)
            else _portable(value)
            for name, value in schema.items()
        }
    return [_portable(value) for value in schema] if isinstance(schema, list) else schema


def _kinds(names: list[str]) -> set[tuple[str, str]]:
    return {
        ("topic", TOPICS[name].payload) if name in TOPICS else ("queue", QUEUES[name].payload)
        for name in names
    }


def _message(kind: str, payload: str) -> dict[str, Any]:
    return {
        "name": payload,
        "contentType": "application/json",
        "headers": {"type": "object", "properties": _TRACE if kind == "topic" else _QUEUE_HEADERS},
        "payload": {"$ref": f"#/components/schemas/{payload}"},
    }


def _channel(name: str) -> dict[str, Any]:
    return _topic(TOPICS[name]) if name in TOPICS else _queue(QUEUES[name])


def _topic(topic: Topic) -> dict[str, Any]:
    return {
        "address": topic.name,
        "description": f"Topic, key `{topic.key}`, kept {topic.retention.days} days"
        + (", purged once it is proven to have landed" if topic.purged else "")
        + (", lossy under pressure" if topic.lossy else ""),
        "messages": {"message": {"$ref": f"#/components/messages/topic.{topic.payload}"}},
        "bindings": {
            "kafka": {
                "topic": topic.name,
                "partitions": topic.partitions,
                "topicConfiguration": {
                    "retention.ms": round(topic.retention.total_seconds() * 1000),
                    "max.message.bytes": topic.max_record_bytes,
                },
                "bindingVersion": "0.5.0",
            }
        },
    }


def _queue(family: QueueFamily) -> dict[str, Any]:
    pauses = ", ".join(f"{pause.total_seconds():g} s" for pause in family.ladder)
    channel: dict[str, Any] = {
        "address": family.queue,
        "description": f"Queue behind the {family.kind} exchange `{family.exchange}`, routing key "
        f"`{family.routing_key}`; tried again after {pauses}, then in `{dead_letters_of(family.queue)}`"
        + (f"; life {family.ttl.total_seconds() / 3600:g} h" if family.ttl else "")
        + ("; one consumer at a time" if family.single_active else ""),
        "messages": {"message": {"$ref": f"#/components/messages/queue.{family.payload}"}},
        "bindings": {
            "amqp": {
                "is": "queue",
                "queue": {"name": family.queue, "durable": True, "exclusive": False, "autoDelete": False},
                "bindingVersion": "0.3.0",
            }
        },
    }
    if "{" in family.queue:
        place = family.queue.partition("{")[2].partition("}")[0]
        channel["parameters"] = {place: {"enum": list(family.instances)} if family.instances else {}}
    return channel


def _pointer(name: str) -> str:
    """`name` within a JSON pointer of a `$ref`."""
    return name.replace("~", "~0").replace("/", "~1").replace("{", "%7B").replace("}", "%7D")
