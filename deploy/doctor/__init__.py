"""What is wrong with an installation, and how to mend it. Each check answers even where others cannot."""

from collections.abc import Callable, Iterator

from deploy.doctor.dagster import dagster as dagster_state
from deploy.doctor.facts import objects, senders
from deploy.doctor.finding import Finding, Level
from deploy.doctor.flow import audit_lag, dead_letters, publication_lag, queues, relay_lag, usage_owners
from deploy.doctor.machine import disk, kernel, memory, packages
from deploy.doctor.platform import components, database, files, orphans, ports
from deploy.installation import Installation

__all__ = ["CHECKS", "Finding", "Level", "examine"]

Check = Callable[[Installation], Iterator[Finding]]

CHECKS: tuple[Check, ...] = (
    kernel,
    packages,
    disk,
    memory,
    files,
    orphans,
    ports,
    components,
    database,
    relay_lag,
    publication_lag,
    usage_owners,
    audit_lag,
    objects,
    senders,
    dead_letters,
    queues,
    dagster_state,
)


def examine(installation: Installation) -> Iterator[Finding]:
    """Run every check; one that breaks becomes a finding itself."""
    for check in CHECKS:
        try:
            yield from check(installation)
        except Exception as error:
            name = check.__name__.replace("_", " ")
            yield Finding(name, Level.FAIL, f"could not be checked: {error}", "see `headrace status` first")
