"""How a job is cut, and how work is named."""

from __future__ import annotations

import pytest

from fewstep.scale.shards import MOST, Done, Ready, Shard, Work, cut, in_this_process


@pytest.mark.parametrize("total", [1, 4, 5, 12, 13, 4096, 100_000])
@pytest.mark.parametrize("batches", [None, 1, 3])
def test_every_sample_lies_in_one_shard_and_shards_begin_with_batches(total, batches):
    shards = cut(total, 4, batches)
    assert [row for shard in shards for row in range(shard.begin, shard.end)] == list(range(total))
    assert [shard.number for shard in shards] == list(range(len(shards)))
    assert all(shard.begin % 4 == 0 for shard in shards) and sum(map(len, shards)) == total
    assert batches is None or all(len(shard) == 4 * batches for shard in shards[:-1])
    assert batches is not None or len(shards) <= MOST


def test_a_small_job_has_a_shard_a_batch():
    assert cut(10, 4) == (Shard(0, 0, 4), Shard(1, 4, 8), Shard(2, 8, 10))
    assert len(cut(100_000, 256)) == 391 and len(cut(1_000_000, 256)) == 489


@pytest.mark.parametrize(
    "arguments, message",
    [
        ((0, 4), "n must be a whole number of at least 1, got 0"),
        ((4, 0), "batch_size must be a whole number of at least 1, got 0"),
        ((4, 4, 0), "the batches of a shard must be a whole number of at least 1, got 0"),
        ((4, 1.5), "batch_size must be a whole number"),
    ],
)
def test_bad_sizes(arguments, message):
    with pytest.raises(ValueError, match=message):
        cut(*arguments)


class Counting:
    """Returns where it was asked to begin and end."""

    def __init__(self, step: int) -> None:
        self.about, self.step = {"step": step}, step

    def __call__(self, begin, end):
        return list(range(begin, end, self.step)), {"rows": end - begin}


def test_work_is_made_by_name_and_done_in_order():
    work = Work(f"{__name__}:Counting", {"step": 2})
    ready, *done = in_this_process(work, cut(5, 4))
    assert ready == Ready({"step": 2}, "here")
    assert done == [
        Done(Shard(0, 0, 4), [0, 2], {"rows": 4}, "here"),
        Done(Shard(1, 4, 5), [4], {"rows": 1}, "here"),
    ]
