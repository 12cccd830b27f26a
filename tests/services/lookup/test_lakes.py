"""Lakes between questions: kept, brought forward, never shared, and gone after a failure."""

from pathlib import Path

import polars as pl
import pytest

from assets.usage.generation import TABLES
from core.lake import Lake
from core.lake.commit import commit, create
from core.settings import ObjectSettings
from services.lookup.lakes import Lakes

TABLE = "usage_events"


def test_a_lake_is_used_again_and_sees_what_was_committed_since(lakes: Lakes[Lake]) -> None:
    rows = pl.DataFrame({"slice": [1]})
    with lakes.one(1) as lake, lakes.one(1) as other:
        create(lake, TABLE, rows.clear(), ("slice",))
        before = other.open(TABLE)
        assert other is not lake
        assert before is not None
        commit(lake, TABLE, rows, {}, {})
    with lakes.one(2) as elsewhere, lakes.one(1) as again, lakes.one(1) as third:
        assert elsewhere not in (lake, other)
        assert {again, third} == {lake, other}
        after = other.open(TABLE)
        assert after is before  # not opened anew
        assert after.version() == 1


def test_a_lake_that_failed_is_not_used_again(lakes: Lakes[Lake]) -> None:
    with pytest.raises(OSError, match="gone"), lakes.one(1) as lake:
        raise OSError("gone")
    with lakes.one(1) as other:
        assert other is not lake


@pytest.fixture
def lakes(tmp_path: Path) -> Lakes[Lake]:
    objects = ObjectSettings(objects_url=tmp_path.as_uri())
    return Lakes(lambda generation: Lake(objects, generation=generation, of=TABLES))
