"""What an installation looks like from outside: the launcher's last word, checked against the processes."""

from pathlib import Path
from typing import Any

from deploy.supervisor.processes import Identity, members, memory_mb
from deploy.supervisor.run_folder import RunFolder


def rows_of(folder: Path) -> list[dict[str, Any]]:
    """One row a component, from the launcher's last word and a look at the processes.

    Without a launcher a process that still lives is an `orphan`, everything else `stopped`.
    """
    run_folder = RunFolder(folder)
    state = run_folder.state()
    if state is None:
        return []
    mark = state.get("mark", "")
    supervised = run_folder.locked()
    rows = []
    for component in state["components"]:
        found: list[Identity] = []
        if component["pid"] is not None:
            leader = Identity(component["pid"], component["start"], component["boot"])
            found = members(leader, f"{mark}/{component['name']}")
        now = component["state"] if supervised else "orphan" if found else "stopped"
        rows.append(
            {
                "name": component["name"],
                "state": now,
                "address": component["address"],
                "pid": component["pid"] if found else None,
                "rss_mb": memory_mb(found),
                "since": component["since"] if supervised else None,
                "restarts": component["restarts"],
                "reason": component["reason"],
            }
        )
    return rows
