"""The drill: import a trace while components die, and compare with an import nobody disturbed."""

import asyncio
import threading
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from core.lake import Lake
from core.settings import DatabaseSettings, EventLogSettings, ObjectSettings
from core.snapshots import fetch_latest, read_pointer
from deploy.client import Client, Operator
from deploy.demo import oracle, run, sample
from deploy.drill import content
from deploy.drill.plan import Kill, plan
from deploy.drill.platform import DrillError, Platform
from deploy.imports.runner import run_import
from deploy.installation import Installation, load
from deploy.session import operator, settings_of

CALM, STORM = "drill-calm", "drill-storm"
"""The two organisations that the same file is imported for."""
PATIENCE = 420.0
"""Seconds a quiet platform has to finish what is owed, restarts and a Dagster retry included."""
Say = Callable[[str], None]


@dataclass(frozen=True, slots=True)
class Result:
    """Content hashes of one run, and how often records came twice."""

    facts: str
    cells: str
    snapshot: str
    invoice: str
    unrounded: str
    counted: int
    duplicates: int

    @property
    def hashes(self) -> tuple[str, str, str, str]:
        return self.facts, self.cells, self.snapshot, self.invoice


HUNGRY = 10.0
"""Seconds without the process that is to die, after which more is imported: longer than each takes to come back."""


class Storm(threading.Thread):
    """Carries out the plan, and holds the import back so that it lasts as long."""

    def __init__(self, platform: Platform, kills: list[Kill], say: Say) -> None:
        super().__init__(daemon=True)
        self._platform, self._kills, self._say = platform, kills, say
        self.done: list[dict[str, Any]] = []
        self.error: BaseException | None = None
        self.finished = threading.Event()
        self._seeking: float | None = None
        """Since when it looks for the process that dies next."""

    def run(self) -> None:
        began = time.monotonic()
        try:
            for number, kill in enumerate(self._kills, 1):
                time.sleep(kill.after)
                self._seeking = time.monotonic()
                pid = self._platform.kill(kill.target)
                self._seeking = None
                self.done.append(
                    {"at": round(time.monotonic() - began, 1), "target": kill.target, "pid": pid}
                )
                self._say(
                    f"kill {number:2} of {len(self._kills)} at {time.monotonic() - began:5.1f} s: {kill.target}"
                )
        except BaseException as error:  # raised again by whoever joins this thread
            self.error = error
        self.finished.set()

    def hold_back(self, sent: int, total: int) -> None:
        """Wait until as large a part of the kills as of the import has happened; not while the next to die is the worker
        of a run and there is none: runs need records."""
        while not self.finished.is_set() and len(self.done) / len(self._kills) < sent / total - 0.05:
            if self._seeking is not None and time.monotonic() - self._seeking > HUNGRY:
                return
            time.sleep(0.1)


def drill(
    folder: Path, profile: str, port_base: int, kills: int, requests: int, seed: int, say: Say
) -> dict[str, Any]:
    """Import so many requests in a calm, then for another organisation in a storm, on a platform in `folder`.

    Raises:
        DrillError: the drill could not be carried out, or its contents differ.
    """
    trace = sample.write(folder / "trace.csv", seed=seed, count=requests)
    with Platform(folder / "platform", profile, port_base) as platform:
        say("calm: the same import, undisturbed")
        calm = _import_and_hash(platform, CALM, trace, lambda sent, total: None)
        say(f"storm: {kills} kills, seed {seed}")
        storm = Storm(platform, plan(profile, kills, seed), say)
        disturbed = _import_and_hash(platform, STORM, trace, storm.hold_back, storm)
    report = {
        "profile": profile,
        "seed": seed,
        "kills": storm.done,
        "calm": asdict(calm),
        "storm": asdict(disturbed),
        "equal": calm.hashes == disturbed.hashes,
        "expected": oracle.read_trace(trace).unrounded,
    }
    if calm.unrounded != report["expected"]:
        raise DrillError(f"the undisturbed invoice is {calm.unrounded}, the oracle says {report['expected']}")
    return report


def _import_and_hash(
    platform: Platform,
    tenant: str,
    trace: Path,
    hold_back: Callable[[int, int], None],
    storm: Storm | None = None,
) -> Result:
    installation = load(platform.data)
    owner = operator(installation)
    tenant_id = owner.ensure_tenant(tenant)
    key = owner.tenant_key(tenant)
    if storm is not None:
        storm.start()
    with Client(owner.gateway_url, key, patience=180) as client:
        run_import(
            client, trace, run.mapped("drill"), tenant_id=tenant_id, tenant_name=tenant,
            checkpoints=platform.data / "imports", progress=hold_back,
        )  # fmt: skip
    if storm is not None:
        storm.join()
        if storm.error is not None:
            raise DrillError(
                f"the storm broke off after {len(storm.done)} kills: {storm.error}"
            ) from storm.error
        platform.wait_ready()
    return asyncio.run(_hash(installation, owner, tenant_id, 2 * sample_rows(trace)))


def sample_rows(trace: Path) -> int:
    """Requests in a trace, by the oracle's reader."""
    return oracle.read_trace(trace).requests


async def _hash(installation: Installation, owner: Operator, tenant_id: str, events: int) -> Result:
    """Wait until everything sent is published and in a snapshot, then hash."""
    database = settings_of(installation, DatabaseSettings)
    objects = settings_of(installation, ObjectSettings)
    settings = run.Settings(
        owner.gateway_url,
        settings_of(installation, EventLogSettings),
        database,
        installation.folder / "imports",
    )
    deadline = time.monotonic() + PATIENCE
    while True:
        expected = await run.expected(settings, tenant_id)
        totals = owner.client().get("/api/v1/billing/invariants", tenant=tenant_id)["totals"]
        if expected.counted >= events and int(totals["landed"]) == expected.landed:
            break
        if time.monotonic() > deadline:
            raise DrillError(
                f"expected {events} counted of {expected.as_dict()}, published {totals}; see the logs"
            )
        time.sleep(1)  # noqa: ASYNC251 - nothing else runs in this command
    problems = list(oracle.differences(expected, {name: int(totals[name]) for name in expected.as_dict()}))
    if problems:
        raise DrillError(f"published fates are not the oracle's: {'; '.join(problems)}")
    draft = owner.client().get("/api/v1/billing/invoices/draft", tenant=tenant_id)
    while True:
        pointer = await read_pointer(objects, database)
        if pointer is not None and pointer.lake_version >= int(draft["lake_version"]):
            break
        if time.monotonic() > deadline:
            raise DrillError(f"no snapshot of lake version {draft['lake_version']} came; see the logs")
        time.sleep(1)  # noqa: ASYNC251
    path = await fetch_latest(objects, database, installation.folder / "snapshots")
    return Result(
        facts=content.facts(Lake(objects), tenant_id),
        cells=content.cells(database, tenant_id),
        snapshot=content.snapshot(path, tenant_id),
        invoice=content.invoice(draft),
        unrounded=str(draft["unrounded"]),
        counted=expected.counted,
        duplicates=expected.duplicates,
    )
