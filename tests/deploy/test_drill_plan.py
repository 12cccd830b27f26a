"""The plans of the drills."""

import threading
from collections import Counter
from pathlib import Path
from signal import SIGKILL, SIGTERM

import pytest

from deploy.drill import runs, usage_kill
from deploy.drill.plan import LONGEST, SHORTEST, TARGETS, Kill, plan
from deploy.drill.platform import WORKER, Platform


@pytest.mark.parametrize("profile", TARGETS)
def test_a_seed_gives_one_plan_in_which_every_target_dies(profile: str) -> None:
    first = plan(profile, 20, seed=7)
    assert first == plan(profile, 20, seed=7)
    assert first != plan(profile, 20, seed=8)
    deaths = Counter(kill.target for kill in first)
    assert set(deaths) == set(TARGETS[profile])
    assert max(deaths.values()) - min(deaths.values()) <= 1
    assert all(SHORTEST <= kill.after <= LONGEST for kill in first)


def test_an_import_goes_on_where_the_storm_waits_for_a_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """All that was sent has landed, so no worker is there to be killed, and without more none will be."""
    monkeypatch.setattr(usage_kill, "HUNGRY", 0.2)
    imported = threading.Event()

    class Idle(Platform):
        def kill(self, target: str, patience: float = 30) -> int:
            assert imported.wait(patience), f"no process of {target}"
            return 1

    storm = usage_kill.Storm(Idle(tmp_path, "embedded", 20_000), [Kill(0, WORKER)], print)
    storm.start()
    storm.hold_back(1, 1)
    imported.set()
    storm.join()
    assert (storm.error, len(storm.done)) == (None, 1)


@pytest.mark.parametrize(("number", "rounds"), [(10, 1), (200, 1), (399, 1), (1000, 5)])
def test_of_each_service_one_instance_is_killed_and_the_other_drained(number: int, rounds: int) -> None:
    blows = runs.plan(number)
    for at in range(rounds):
        ended = {(blow.target, blow.how) for blow in blows[6 * at : 6 * at + 6]}
        killed = {target for target, how in ended if how is SIGKILL}
        drained = {target for target, how in ended if how is SIGTERM}
        assert {target.removesuffix("-2") for target in killed} == set(runs.REPLICATED)
        assert {target.removesuffix("-2") for target in drained} == set(runs.REPLICATED)
        assert not killed & drained
    assert len(blows) == 6 * rounds
    moments = [blow.after_runs for blow in blows]
    assert moments == sorted(moments)
    assert moments[-1] < number
