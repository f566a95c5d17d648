"""Processes that work on one picture: messages between them that nobody waits for yet, and how they are started."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import timedelta
from typing import Any

import torch
from torch import Tensor

from fewstep.core.arguments import shown

Message = tuple[int, Tensor]  # the other worker, and what is sent to it or room for what comes from it


@dataclass
class Pending:
    """Messages under way. `wait` returns when those received have come and those sent are gone.

    The tensors must not be touched before.
    """

    works: list[tuple[int, Any]]  # the other worker, and torch's handle
    kept: Sequence[Message]  # what is being sent: it must outlive the sending
    group: Group

    def wait(self) -> None:
        """Raises RuntimeError for a worker that is gone, or silent for longer than the group's timeout."""
        while self.works:
            peer, work = self.works.pop()
            try:
                work.wait(timedelta(seconds=self.group.timeout))
            except RuntimeError as error:
                raise RuntimeError(
                    f"worker {peer} of {self.group.size} is gone, or has said nothing to worker {self.group.rank} for"
                    f" {self.group.timeout:g} s: {str(error).splitlines()[0]}"
                ) from error
        self.kept = ()


class Group:
    """This process among the workers of one picture: `rank` of `size`. Every worker makes the same exchanges in turn.

    Args:
        processes: a process group of torch.distributed of the backend gloo; by default the one that there is (`join`
            makes it from the environment that torchrun sets).
        timeout: seconds after which a worker that says nothing counts as gone.

    Raises:
        ValueError: no process group, or a timeout that is not above 0.
    """

    def __init__(self, processes: Any = None, timeout: float = 60.0) -> None:
        from torch import distributed

        if not timeout > 0:
            raise ValueError(f"timeout must be above 0 seconds, got {timeout}")
        if processes is None and not distributed.is_initialized():
            raise ValueError(
                "there is no process group: call Group.join() in processes that torchrun started, or"
                " fewstep.scale.workers.start"
            )
        own: Any = distributed.group.WORLD if processes is None else processes
        self.processes, self.timeout = own, float(timeout)
        self.rank: int = own.rank()
        self.size: int = own.size()
        self._count = 0

    @classmethod
    def join(cls, timeout: float = 60.0) -> Group:
        """The group of the processes that torchrun started, this one among them.

        Raises:
            ValueError: a process that nothing of the kind has started.
        """
        from torch import distributed

        if missing := [name for name in ("RANK", "WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT") if name not in os.environ]:
            raise ValueError(f"{', '.join(missing)} not set: start the workers with torchrun --nproc-per-node N")
        distributed.init_process_group("gloo", timeout=timedelta(seconds=timeout))
        return cls(timeout=timeout)

    def leave(self) -> None:
        """Wait for the others, and take the default process group down."""
        from torch import distributed

        distributed.barrier()
        distributed.destroy_process_group()

    def exchange(self, sent: Sequence[Message], received: Sequence[Message]) -> Pending:
        """Begin to send contiguous tensors and to fill others; nothing waits.

        Raises:
            ValueError: tensors that are not on the CPU, where gloo sends from. RuntimeError: a worker that is gone.
        """
        for _, tensor in (*sent, *received):
            if tensor.device.type != "cpu":
                raise ValueError(f"workers exchange tensors of the CPU, got one of {tensor.device}")
        tag, self._count = self._count % 2**30, self._count + 1
        works: list[tuple[int, Any]] = []
        for call, messages in ((self.processes.recv, received), (self.processes.send, sent)):
            for peer, tensor in messages:
                try:
                    works.append((peer, call([tensor], peer, tag)))
                except RuntimeError as error:
                    raise RuntimeError(f"worker {peer} of {self.size} is gone: {str(error).splitlines()[0]}") from error
        return Pending(works, sent, self)


def start(task: Callable[..., Any], workers: int, *args: Any, timeout: float = 60.0, **named: Any) -> list[Any]:
    """`task(group, *args, **named)` in so many processes on this machine; what each returned, in order.

    The processes are spawned, with a thread each: the task must be a function of a module, and a script that calls
    this guards it by `if __name__ == "__main__"`. Weights of models among the arguments are shared, not copied. A task
    returns tensors, numbers, text, or lists and dictionaries of them.

    timeout: seconds for which a worker waits for another.

    Raises:
        ValueError: fewer than one worker. RuntimeError: a worker that raised or died; the others are ended.
    """
    import torch.multiprocessing as processes

    if isinstance(workers, bool) or not isinstance(workers, int) or workers < 1:
        raise ValueError(f"workers must be a whole number of at least 1, got {shown(workers)}")
    with tempfile.TemporaryDirectory() as folder:
        context = processes.spawn(_worker, (workers, folder, timeout, task, args, named), workers, join=False)
        try:
            while not context.join():
                pass
        except (processes.ProcessExitedException, processes.ProcessRaisedException) as error:
            told = str(error).strip().splitlines()[-1]
            raise RuntimeError(f"worker {error.error_index} of {workers} ended: {told}") from error
        return [torch.load(os.path.join(folder, f"answer-{rank}"), weights_only=True) for rank in range(workers)]


def _worker(
    rank: int,
    workers: int,
    folder: str,
    timeout: float,
    task: Callable[..., Any],
    args: Sequence[Any],
    named: dict[str, Any],
) -> None:
    from torch import distributed

    torch.set_num_threads(1)
    store = distributed.FileStore(os.path.join(folder, "store"), workers)
    store.set_timeout(timedelta(seconds=timeout))
    distributed.init_process_group(
        "gloo", store=store, rank=rank, world_size=workers, timeout=timedelta(seconds=timeout)
    )
    group = Group(timeout=timeout)
    answer = task(group, *args, **named)
    torch.save(answer, os.path.join(folder, f"answer-{rank}"))
    group.leave()
