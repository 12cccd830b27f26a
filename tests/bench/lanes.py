"""Forty runs of twenty seconds on two instances: how long until all have ended, beside one of them alone.

    make bench NAME=lanes

Each run is of a conversation of its own and takes a step a second, each with its checkpoint; instances take up to 24
runs at once. After ten seconds one instance is drained and another starts in its place, so half of the runs change
hands. Every run must tell one dense story with one terminal event, and its answer must be whole.

The ratio is the time of all by the twenty seconds of one: one lane each on four partitions would make it ten.
"""

import argparse
import asyncio
import secrets
import signal
import tempfile
import time
from contextlib import ExitStack
from pathlib import Path
from typing import Final

from deploy.servers.postgres import postgres as postgres_server
from tests.bench import report
from tests.servers import database_settings, free_port, start, stop
from tests.services.agents.arena import Arena, Asker
from tests.services.agents.scripted import answer_to

SECONDS: Final = 20
PATIENCE: Final = 300.0
SCRIPT: Final = {"steps": str(SECONDS), "words": "1", "pause": "1"}


async def _measure(arena: Arena, runs: int) -> tuple[float, int]:
    """Seconds until all have ended, and takeovers."""
    asker = await Asker.of(arena.settings)
    with ExitStack() as stack:
        stack.enter_context(arena.runner("one", lease=6.0))
        leaving = stack.enter_context(arena.runner("two", lease=6.0))
        began = time.monotonic()
        script = " ".join(f"{name}={value}" for name, value in SCRIPT.items())
        for _ in range(runs):
            await asker.ask(script)
        await asyncio.sleep(SECONDS / 2)
        leaving.send_signal(signal.SIGTERM)
        stack.enter_context(arena.runner("three", lease=6.0))
        while any(run.ended_at is None for run in (await asker.runs()).values()):
            if time.monotonic() - began > PATIENCE:
                raise SystemExit(f"runs were still open after {PATIENCE:.0f} s")
            await asyncio.sleep(0.1)
        seconds = time.monotonic() - began
    stories, answers = await asker.stories(), await asker.answers()
    for run, story in stories.items():
        story.check()
        if story.types[-1] != "run.completed" or not story.text == answers[run] == answer_to(SCRIPT):
            raise SystemExit(f"{run} ended with {story.types[-1]} and another text than its script says")
    if len(stories) != runs:
        raise SystemExit(f"{len(stories)} of {runs} runs have events")
    await asker.close()
    return seconds, sum(len(story.takeovers) for story in stories.values())


def main() -> None:
    arguments = argparse.ArgumentParser(
        description="Runs side by side on two instances, one of which is replaced."
    )
    arguments.add_argument("--runs", type=int, default=40)
    options = arguments.parse_args()
    with tempfile.TemporaryDirectory(prefix="headrace-bench-") as name:
        folder, port, password = Path(name), free_port(), secrets.token_hex(16)
        server = postgres_server(folder / "postgres", port, password)
        process = start(server, folder / "postgres.log")
        try:
            arena = Arena(database_settings(port, password), folder)
            seconds, takeovers = asyncio.run(_measure(arena, options.runs))
        finally:
            stop(server, process)
    report.write(
        "lanes",
        {"all_runs_to_one": seconds / SECONDS},
        {"runs": options.runs, "seconds_of_each": SECONDS, "seconds_of_all": round(seconds, 1), "takeovers": takeovers},
    )  # fmt: skip


if __name__ == "__main__":
    main()
