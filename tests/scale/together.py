"""Workers as threads of one process, each with its own end of a real gloo group, and tasks for workers."""

from __future__ import annotations

import os
import threading
from collections.abc import Callable
from datetime import timedelta
from typing import Any

import torch
from torch import distributed

from fewstep.scale.workers import Group


def together(task: Callable[[Group], Any], workers: int, timeout: float = 30.0) -> list[Any]:
    """What `task(group)` returned, or raised, in each worker."""
    store, found, ends = distributed.HashStore(), [None] * workers, [None] * workers

    def run(rank: int) -> None:
        try:
            # Kept until all are done: an end that goes cuts off what others have not read yet.
            ends[rank] = distributed.ProcessGroupGloo(store, rank, workers, timedelta(seconds=timeout))
            found[rank] = task(Group(ends[rank], timeout))
        except Exception as error:
            found[rank] = error

    threads = [threading.Thread(target=run, args=(rank,)) for rank in range(workers)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return found


def ring(group: Group, scale: float = 1.0) -> torch.Tensor:
    """Two messages under way at once, each from the worker before; the second waits first."""
    before, after = (group.rank - 1) % group.size, (group.rank + 1) % group.size
    rooms = [torch.empty(3), torch.empty(2, dtype=torch.bfloat16)]
    mine = [torch.full((3,), scale * group.rank), torch.full((2,), 10.0 + group.rank, dtype=torch.bfloat16)]
    pending = [group.exchange([(after, sent)], [(before, room)]) for sent, room in zip(mine, rooms, strict=True)]
    for one in reversed(pending):
        one.wait()
        one.wait()
    return torch.cat([room.float() for room in rooms])


def dies(group: Group) -> None:
    if group.rank == 1:
        os._exit(3)
    group.exchange([], [(1, torch.empty(2))]).wait()


def raises(group: Group) -> None:
    if group.rank == 1:
        raise ValueError("one that worker 1 raised")
    group.exchange([], [(1, torch.empty(2))]).wait()
