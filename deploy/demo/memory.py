"""What a demo has read of the topic, for the next one: records are purged a day after they were published."""

import json
from dataclasses import dataclass, field
from pathlib import Path

from deploy.demo.oracle import Fates, Known
from deploy.supervisor.run_folder import write_atomically


@dataclass(slots=True)
class Memory:
    """Everything of one tenant below `next` of each partition, as the oracle keeps it."""

    topic_id: str
    next: dict[int, int] = field(default_factory=dict)
    known: Known = field(default_factory=Known)


def load(folder: Path, tenant_id: str, topic_id: str) -> Memory:
    """What was kept; nothing where that was of a topic that was made anew since."""
    try:
        kept = json.loads(_file(folder, tenant_id).read_text())
    except FileNotFoundError:
        return Memory(topic_id)
    if kept["topic_id"] != topic_id:
        return Memory(topic_id)
    first = {(source, name): said for source, name, said in kept["first"]}
    offsets = {int(partition): offset for partition, offset in kept["next"].items()}
    return Memory(topic_id, offsets, Known(Fates(**kept["fates"]), first))


def save(folder: Path, tenant_id: str, memory: Memory) -> None:
    kept = {
        "topic_id": memory.topic_id,
        "next": memory.next,
        "fates": memory.known.fates.as_dict(),
        "first": [[*name, said] for name, said in memory.known.first.items()],
    }
    file = _file(folder, tenant_id)
    file.parent.mkdir(parents=True, exist_ok=True)
    write_atomically(file, json.dumps(kept), durable=False)


def _file(folder: Path, tenant_id: str) -> Path:
    return folder / f"demo-{tenant_id}.json"
