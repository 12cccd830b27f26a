"""Starts, memory and healing of a whole platform, from a bare clone; packages and real servers come from the user's
cache where it has them.

    make bench NAME=launcher [ARGS="--profile stack --idle 60"]

Ratios are figure / aim, so below 1 is kept: 180 s for the first start, 30 s for a warm one, 45 s from
`up` to the end of the first answer, 30 s from an upload to a search that finds it, 1200 MB idle, 6 s for
PostgreSQL after SIGKILL.
"""

import argparse
import asyncio
import json
import os
import signal
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import psutil

from deploy.client import Client
from deploy.demo import conversation, handbook, library
from deploy.installation import load
from deploy.session import operator
from deploy.supervisor.run_folder import RunFolder
from tests.bench import report
from tests.bench.installation import server_cpu
from tests.servers import free_base

REPOSITORY = Path(__file__).parents[2]
FIRST_START, WARM_START, IDLE_MEMORY, DATABASE_HEALS = 180.0, 30.0, 1200.0, 6.0
FIRST_ANSWER, SEARCHABLE = 45.0, 30.0
TENANT = "bench"
UPLOADS = 3
PATIENCE = 300.0


class Clone:
    """A clone of the committed state whose user has nothing yet: no cache, no data, no settings."""

    def __init__(self, folder: Path, profile: str) -> None:
        self.checkout, self.data = folder / "clone", folder / "data"
        subprocess.run(["git", "clone", "--quiet", str(REPOSITORY), str(self.checkout)], check=True)
        system = ("PATH", "SSL_CERT_FILE", "LANG")
        self._environment = {name: os.environ[name] for name in system if name in os.environ}
        self._environment["HOME"] = str(folder)
        if profile == "stack":  # the real servers are provisioned once a machine, not at each start
            self._environment["XDG_CACHE_HOME"] = os.environ.get(
                "XDG_CACHE_HOME", str(Path.home() / ".cache")
            )
        self._up = ("up", "--detach", "--profile", profile, "--port-base", str(free_base()))

    def make(self, target: str) -> float:
        return self._timed("make", target, f"PYTHON={sys.executable}")

    def up(self) -> float:
        return self._timed(".venv/bin/headrace", *self._up, "--data", str(self.data))

    def down(self) -> float:
        return self._timed(".venv/bin/headrace", "down", "--data", str(self.data))

    def rows(self) -> list[dict[str, Any]]:
        """What the launcher wrote down: cheaper to ask again and again than the command."""
        state = RunFolder(self.data).state()
        assert state is not None
        return list(state["components"])

    def memory_mb(self) -> dict[str, float]:
        words = (".venv/bin/headrace", "status", "--json", "--data", str(self.data))
        answer = subprocess.run(
            words, cwd=self.checkout, env=self._environment, capture_output=True, check=True
        )
        return {row["name"]: row["rss_mb"] for row in json.loads(answer.stdout)}

    def cpu_percent(self, seconds: float) -> float:
        """What all components use of one core in so many seconds, after as many of quiet."""
        time.sleep(seconds)
        processes = [psutil.Process(row["pid"]) for row in self.rows()]
        before, began = sum(map(server_cpu, processes)), time.monotonic()
        time.sleep(seconds)
        return round(100 * (sum(map(server_cpu, processes)) - before) / (time.monotonic() - began), 1)

    def _timed(self, *words: str) -> float:
        started = time.monotonic()
        done = subprocess.run(
            words, cwd=self.checkout, env=self._environment, capture_output=True, text=True, check=False
        )
        if done.returncode != 0:
            raise SystemExit(f"{' '.join(words)} failed:\n{done.stdout[-2000:]}{done.stderr[-4000:]}")
        return round(time.monotonic() - started, 1)


class Reader:
    """A tenant with the handbook and an agent that answers from it, over the public API."""

    def __init__(self, data: Path) -> None:
        installation = load(data)
        self._environment = installation.environment
        self._gateway = self._environment["HEADRACE_GATEWAY_URL"]
        self._key = operator(installation).tenant_key(TENANT)

    def prepare(self) -> float:
        """Upload the handbook and wait for it; seconds of it, the building of the model's graph included."""
        began = time.monotonic()
        with Client(self._gateway, self._key) as client:
            base = library.knowledge_base(client, "handbook")
            self._index(client, base, dict(handbook.documents(TENANT)))
            conversation.ensure_agent(client, base)
        return round(time.monotonic() - began, 1)

    def ask(self) -> float:
        """Seconds of one question, streamed to its end, with a citation that stands."""
        began = time.monotonic()
        with Client(self._gateway, self._key) as client:
            ws, question = self._environment["HEADRACE_WS_URL"], handbook.MARKER_QUESTION
            answer = asyncio.run(conversation.ask(client, self._gateway, ws, self._key, question))
        if handbook.marker(TENANT) not in answer.text or not answer.verified:
            raise SystemExit(f"the answer is wrong: {answer.text!r}")
        return round(time.monotonic() - began, 1)

    def searchable(self, number: int) -> float:
        """Seconds from the upload of a page to a search that finds it."""
        word = f"BENCH-{number}-{time.time_ns()}"
        began = time.monotonic()
        with Client(self._gateway, self._key) as client:
            base = library.knowledge_base(client, "handbook")
            self._index(client, base, {f"{word}.md": f"# A page\n\nIts word is {word}.\n".encode()})
            if not any(word in text for text in conversation.passages(client, word)):
                raise SystemExit(f"a document that is indexed is not found: {word}")
        return round(time.monotonic() - began, 1)

    @staticmethod
    def _index(client: Client, base: str, files: dict[str, bytes]) -> None:
        documents = library.upload(client, base, files.items())
        fates = library.await_fates(client, documents, PATIENCE, lambda done: None)
        if any(fate.state != "indexed" for fate in fates.values()):
            raise SystemExit(f"not indexed: {fates}")


def heal(clone: Clone, name: str) -> float:
    """Seconds from SIGKILL of a component to its readiness."""
    before = next(row["pid"] for row in clone.rows() if row["name"] == name)
    started = time.monotonic()
    os.kill(before, signal.SIGKILL)
    while True:
        row = next(row for row in clone.rows() if row["name"] == name)
        if row["pid"] not in (before, None) and row["state"] == "ready":
            return round(time.monotonic() - started, 2)
        time.sleep(0.02)


def main() -> int:
    signal.signal(signal.SIGTERM, signal.default_int_handler)  # the platform must not outlive the bench
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--profile", default="embedded")
    parser.add_argument(
        "--idle",
        type=float,
        default=60,
        help="seconds of quiet before idle CPU and memory are read, and as many while",
    )
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="headrace-bench-") as folder:
        clone = Clone(Path(folder), arguments.profile)
        setup = clone.make("setup")
        again = clone.make("setup")
        try:
            first = clone.up()
            reader = Reader(clone.data)
            handbook_seconds = reader.prepare()
            clone.down()
            warm = clone.up()
            answer = reader.ask()
            uploads = [reader.searchable(number) for number in range(UPLOADS)]
            used = clone.memory_mb()
            clone.down()
            again_warm = clone.up()
            idle_cpu = clone.cpu_percent(arguments.idle)
            memory = clone.memory_mb()
            healed = {row["name"]: heal(clone, row["name"]) for row in clone.rows()}
        finally:
            stopped = clone.down()
    total = sum(memory.values())
    report.write(
        "launcher" if arguments.profile == "embedded" else f"launcher-{arguments.profile}",
        {
            "first_start_of_aim": (setup + first) / FIRST_START,
            "warm_start_of_aim": statistics.mean((warm, again_warm)) / WARM_START,
            "first_answer_of_aim": (warm + answer) / FIRST_ANSWER,
            "searchable_of_promise": statistics.median(uploads) / SEARCHABLE,
            "idle_memory_of_aim": total / IDLE_MEMORY,
            "postgres_heals_of_aim": healed["postgres"] / DATABASE_HEALS,
        },
        {
            "profile": arguments.profile,
            "setup_seconds": setup,
            "setup_again_seconds": again,
            "first_up_seconds": first,
            "first_start_from_a_bare_clone_seconds": round(setup + first, 1),
            "warm_up_seconds": [warm, again_warm],
            "warm_up_to_first_answer_seconds": round(warm + answer, 1),
            "handbook_searchable_on_a_new_installation_seconds": handbook_seconds,
            "upload_to_searchable_seconds": uploads,
            "down_seconds": stopped,
            "idle_cpu_percent_of_a_core": idle_cpu,
            "idle_memory_mb": round(total),
            "idle_memory_mb_by_component": memory,
            "memory_mb_after_questions_and_uploads": round(sum(used.values())),
            "seconds_from_sigkill_to_ready": healed,
        },
    )
    return 0


if __name__ == "__main__":
    sys.exit(main())
