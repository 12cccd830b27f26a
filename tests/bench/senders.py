"""A million events of one producer, one dropped and one doubled: how long until both are named.

    make bench NAME=senders [ARGS="--events 1000000"]

The events land slice by slice and are reconciled as in a run; then the producer's checkpoint over all of them
comes. Counted is the time on the wall from there until both numbers are named in PostgreSQL. In an installation
the sensor's look, at most a minute apart, and the start of a run come before it.
"""

import argparse
import tempfile
import time
from pathlib import Path

from deploy.servers.postgres import postgres as postgres_server
from tests.assets.usage.test_producers import Log, checkpoint
from tests.assets.usage.test_producers import event as numbered
from tests.bench import report
from tests.servers import database_settings, free_port, running

SLICE = 50_000
PROMISED_SECONDS = 120.0


def run(folder: Path, events: int) -> tuple[dict[str, float], dict[str, object]]:
    """Raises: SystemExit, where anything else than the two is named."""
    port, password = free_port(), "only-of-this-bench"
    with running(postgres_server(folder / "postgres", port, password), folder / "postgres.log"):
        log = Log(folder, database_settings(port, password))
        sent = [numbered(number) for number in range(1, events + 1)]
        dropped, doubled = events * 2 // 3, events // 3
        began = time.monotonic()
        for low in range(0, events, SLICE):
            part = [one for one in sent[low : low + SLICE] if one.sequence != dropped]
            log.write(part[::2])
            log.write(part[1::2], partition=1)
            if low == 0:
                log.write([numbered(doubled, named="the same work under another id")], partition=1)
            alarms = log.carry().open
            if alarms:
                raise SystemExit(f"{alarms} alarms before the checkpoint came")
        landing = time.monotonic() - began
        log.write([checkpoint(sent)])
        began = time.monotonic()
        log.carry()
        seconds = time.monotonic() - began
        [row] = log.checkpoints()
    if row[3:6] != ("incomplete", [[dropped, dropped]], [[doubled, doubled]]):
        raise SystemExit(f"named were {row[3:6]}, expected {dropped} missing and {doubled} doubled")
    return {"seconds_to_two_minutes": seconds / PROMISED_SECONDS}, {
        "events": events, "slices": events // SLICE + 1, "missing": row[4], "doubled": row[5],
        "seconds_from_checkpoint_to_names": round(seconds, 2), "seconds_of_landing": round(landing, 1),
    }  # fmt: skip


def main() -> None:
    arguments = argparse.ArgumentParser(description="How long until a missing and a doubled event are named.")
    arguments.add_argument("--events", type=int, default=1_000_000)
    options = arguments.parse_args()
    if options.events < 2 * SLICE:
        arguments.error(f"--events must be at least {2 * SLICE}")
    with tempfile.TemporaryDirectory(prefix="headrace-senders-") as name:
        ratios, figures = run(Path(name), options.events)
    report.write("senders", ratios, figures)


if __name__ == "__main__":
    main()
