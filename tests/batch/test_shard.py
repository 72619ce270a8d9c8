"""Part i of n: of items, of rows, and from a scheduler's array."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kin_cli.batch.shard import ARRAY_VARIABLES, Shard
from kin_cli.errors import UsageError


@given(st.integers(1, 9), st.lists(st.integers(0, 5), max_size=40))
def test_shards_divide_items_and_rows(total: int, work: list[int]) -> None:
    shards = [Shard(index, total) for index in range(1, total + 1)]
    assert sorted(item for shard in shards for item in shard.of(range(len(work)))) == list(range(len(work)))
    rows = [shard.rows(work) for shard in shards]
    assert [row for mine in rows for row in mine] == list(range(len(work)))
    fair = sum(work) / total
    assert all(sum(work[row] for row in mine) <= fair + max(work) for mine in rows if mine)


@pytest.mark.parametrize("name", ARRAY_VARIABLES)
def test_auto_takes_the_index_from_the_scheduler_and_never_the_total(name: str) -> None:
    environment = {"SLURM_ARRAY_TASK_COUNT": "1", name: "3"}
    assert Shard.parse("auto/16", environment) == Shard(3, 16)
    assert Shard.parse("5/16", environment) == Shard(5, 16)


@pytest.mark.parametrize("text", ["3", "0/4", "5/4", "3/0", "-1/4", "a/4", "auto", "auto/4", "1/4/2", ""])
def test_shards_that_do_not_exist_are_refused(text: str) -> None:
    with pytest.raises(UsageError):
        Shard.parse(text, {"SGE_TASK_ID": "undefined", "LSB_JOBINDEX": "0"})
    with pytest.raises(UsageError, match="--array=1-4"):
        Shard.parse("auto/4", {"SLURM_ARRAY_TASK_ID": "0"})
