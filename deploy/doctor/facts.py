"""The facts of usage: objects that are lost or changed, events that were sent and are not there."""

from collections.abc import Iterator, Sequence

from core.settings import DatabaseSettings
from deploy.doctor.finding import Finding, Level, few
from deploy.installation import Installation
from deploy.session import settings_of

SHOWN = 3


def objects(installation: Installation) -> Iterator[Finding]:
    """Objects of `usage_events` that are broken, as the last look at each found. After a purge there is no other copy."""
    if not installation.run.locked():
        return
    from assets.usage.scrub import broken  # noqa: PLC0415

    if found := broken(settings_of(installation, DatabaseSettings)):
        mend = "restore it from a copy under the same name; the hourly check objects_intact looks again"
        yield Finding("usage objects", Level.FAIL, _some(found), mend)
    else:
        yield Finding("usage objects", Level.OK, "each is as it was written, when it was last read")


def senders(installation: Installation) -> Iterator[Finding]:
    """What producers said they had sent and what landed."""
    if not installation.run.locked():
        return
    from assets.usage.progress import open_checkpoints  # noqa: PLC0415

    found = [
        f"{tenant}, producer {producer} {incarnation}: {state}, {missing} missing of {first} to {last}"
        for tenant, producer, incarnation, first, last, state, missing in open_checkpoints(
            settings_of(installation, DatabaseSettings)
        )
    ]
    if found:
        mend = (
            "`headrace usage producers` names the numbers; their sender can send them again under their ids"
        )
        yield Finding("usage senders", Level.WARN, _some(found), mend)
    else:
        yield Finding("usage senders", Level.OK, "all that they said they had sent has landed, once")


def _some(found: Sequence[str]) -> str:
    return few(found, SHOWN, joint="; ", last="; and ")
