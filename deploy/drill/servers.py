"""The servers of a profile without its services: for drills that bring their own workers."""

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from core.settings import DatabaseSettings, EventLogSettings, ObjectSettings
from deploy.components import DATABASE, components, own_servers, tasks
from deploy.drill.platform import DrillError
from deploy.installation import PROFILES, prepare
from deploy.launch import refuse_taken_ports
from deploy.provision import provision
from deploy.session import settings_of
from deploy.supervisor.run_folder import RunFolder
from deploy.supervisor.supervisor import Supervisor, end_orphans

WANTED = frozenset({"postgres", "kafka", "minio"})
PATIENCE = 120.0


@contextmanager
def servers(
    folder: Path, profile: str, port_base: int, say: Callable[[str], None]
) -> Iterator[tuple[DatabaseSettings, EventLogSettings, ObjectSettings]]:
    """Database (migrated), event log and object store of an installation in `folder`.

    Raises:
        DrillError: they did not become ready.
    """
    run = RunFolder(folder)
    run.lock()
    try:
        installation = prepare(folder, next(each for each in PROFILES if each == profile), port_base)
        if profile == "stack":
            provision(say, own_servers(installation))
        parts = [part for part in components(installation) if part.name in WANTED]
        end_orphans(parts, run, installation.mark)
        refuse_taken_ports(parts)
        chosen = [task for task in tasks(installation, parts) if task.name == DATABASE]
        supervisor = Supervisor(
            parts, chosen, run=run, logs_folder=installation.logs, mark=installation.mark, facts={}
        )
        try:
            supervisor.start()
            deadline = time.monotonic() + PATIENCE
            while supervisor.ready_after is None:
                if supervisor.poll(0.1) or time.monotonic() > deadline:
                    raise DrillError(f"the servers did not become ready; see {installation.logs}")
            yield (
                settings_of(installation, DatabaseSettings),
                settings_of(installation, EventLogSettings),
                settings_of(installation, ObjectSettings),
            )
        finally:
            supervisor.stop()
    finally:
        run.unlock()
