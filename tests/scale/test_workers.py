"""Messages between workers, in threads over real gloo and in processes, and workers that are gone."""

from __future__ import annotations

import pytest
import torch
from scale.together import dies, raises, ring, together

from fewstep.scale.workers import Group, start


def test_messages_arrive_in_turn():
    for number, found in enumerate(together(ring, 3)):
        before = (number - 1) % 3
        assert found.tolist() == [before] * 3 + [10 + before] * 2


def test_a_silent_worker_is_an_error_and_no_wait_for_ever():
    def task(group: Group) -> None:
        if group.rank == 0:
            group.exchange([], [(1, torch.empty(2))]).wait()

    silent, _ = together(task, 2, timeout=0.3)
    assert isinstance(silent, RuntimeError)
    assert "worker 1 of 2 is gone, or has said nothing to worker 0 for 0.3 s" in str(silent)


def test_bad_input(monkeypatch):
    with pytest.raises(ValueError, match="there is no process group: call Group.join"):
        Group()
    with pytest.raises(ValueError, match="timeout must be above 0 seconds, got 0"):
        Group(timeout=0)
    for name in ("RANK", "WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT"):
        monkeypatch.delenv(name, raising=False)
    with pytest.raises(ValueError, match="RANK, WORLD_SIZE, MASTER_ADDR, MASTER_PORT not set: .* torchrun"):
        Group.join()
    for workers in (0, 1.5):
        with pytest.raises(ValueError, match="workers must be a whole number of at least 1"):
            start(ring, workers)  # type: ignore[arg-type]
    elsewhere = together(lambda group: group.exchange([(0, torch.empty(2, device="meta"))], []), 1)[0]
    assert isinstance(elsewhere, ValueError) and "tensors of the CPU, got one of meta" in str(elsewhere)


@pytest.mark.slow
def test_processes_return_what_each_has():
    found = start(ring, 2, scale=2.0, timeout=120)
    assert [one.tolist() for one in found] == [[2.0] * 3 + [11.0] * 2, [0.0] * 3 + [10.0] * 2]


@pytest.mark.slow
def test_a_process_that_ends_ends_all():
    with pytest.raises(RuntimeError, match=r"worker 1 of 2 ended: .*exit code 3"):
        start(dies, 2, timeout=120)
    with pytest.raises(RuntimeError, match=r"worker 1 of 2 ended: ValueError: one that worker 1 raised"):
        start(raises, 2, timeout=120)
