"""The rows of a call on several workers at once: guidance's conditional half on one, its other half on another."""

from __future__ import annotations

import contextlib
import copy
import weakref
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any, Protocol

import torch
from torch import Tensor

from fewstep.core.denoiser import Denoiser, Wrapper
from fewstep.core.methods import Method
from fewstep.core.prediction import Prediction, joined

METHODS = (
    Method(
        "halves",
        kind="executor",
        paper="SwiftDiffusion: Efficient Diffusion Model Serving with Add-on Modules (Li et al., 2024)",
        arxiv="2407.02031",
        claim="the two halves of a guided call on two devices or processes, at the same time",
        use="Halves",
    ),
)

PATIENCE = 300.0  # seconds that a worker may take for a call


class Worker(Protocol):
    """Another place that has the model."""

    def ask(self, x: Tensor, t: Tensor, condition: dict[str, Any]) -> Any:
        """Begin; what `answer` takes."""
        ...

    def answer(self, asked: Any, x: Tensor, t: Tensor) -> Prediction:
        """The answer to what was asked, on x's device."""
        ...


class Halves(Wrapper):
    """The model, its rows shared out in order: the first part here, each further part on a worker.

    Guidance puts the rows with their conditions first and those without behind them, so that of two workers each has
    one half. Calls with fewer rows than workers stay here.

    Raises:
        ValueError: a model that remembers a run, which would have to be in several places.
    """

    def __init__(self, model: Denoiser, workers: Sequence[Worker]):
        if model.carries:
            raise ValueError("this model remembers its run, which cannot be in several processes")
        super().__init__(model)
        self.workers = list(workers)

    def forward(self, x: Tensor, t: Tensor, **condition: Any) -> Prediction:
        count, rows = len(self.workers) + 1, len(x)
        if rows < count:
            return self.model(x, t, **condition)
        ends = [rows * k // count for k in range(count + 1)]
        parts = [slice(begin, end) for begin, end in zip(ends, ends[1:], strict=False)]

        def part(rows: slice) -> tuple[Tensor, Tensor, dict[str, Any]]:
            named = {k: v[rows] if isinstance(v, Tensor) and v.ndim else v for k, v in condition.items()}
            return x[rows], t[rows] if t.ndim else t, named

        asked = [worker.ask(*part(own)) for worker, own in zip(self.workers, parts[1:], strict=True)]
        answers: list[Prediction] = []
        failed: list[Exception] = []
        try:
            own_x, own_t, own = part(parts[0])
            answers.append(self.model(own_x, own_t, **own))
        except Exception as error:
            failed.append(error)
        for worker, one, own_rows in zip(self.workers, asked, parts[1:], strict=True):
            try:  # an answer that nobody takes would be the next call's
                answers.append(worker.answer(one, x[own_rows], t[own_rows] if t.ndim else t))
            except Exception as error:
                failed.append(error)
        if failed:
            raise failed[0]
        number = torch.arange(rows, device=x.device)
        return joined([(number[where], answer) for where, answer in zip(parts, answers, strict=True)], x, t)


class Device:
    """A copy of the model on another device, asked by a thread of its own."""

    def __init__(self, model: Denoiser, device: torch.device):
        self.model, self.device = copy.deepcopy(model).to(device), device
        self._thread = ThreadPoolExecutor(1, thread_name_prefix=f"fewstep {device}")

    def ask(self, x: Tensor, t: Tensor, condition: dict[str, Any]) -> Any:
        def run() -> Prediction:
            there = {k: v.to(self.device) if isinstance(v, Tensor) else v for k, v in condition.items()}
            with torch.no_grad():
                return self.model(x.to(self.device), t.to(self.device), **there)

        return self._thread.submit(run)

    def answer(self, asked: Any, x: Tensor, t: Tensor) -> Prediction:
        found = asked.result(PATIENCE)
        return Prediction(found.value.to(x.device), found.kind, x, t, self.model.process)


class Process:
    """The model in a process of its own, over weights in shared memory; a process that died is replaced at once."""

    def __init__(self, model: Denoiser, threads: int):
        self.model, self.threads = model, threads
        model.share_memory()
        self._start()

    def _start(self) -> None:
        context = torch.multiprocessing.get_context("spawn")
        self._pipe, theirs = context.Pipe()
        self._process = context.Process(target=_work, args=(theirs, self.model, self.threads), daemon=True)
        self._process.start()
        theirs.close()
        self._end = weakref.finalize(self, _stop, self._pipe, self._process)

    def _lost(self) -> RuntimeError:
        self._end()
        self._start()
        return RuntimeError("a worker process died; it has been started again")

    def ask(self, x: Tensor, t: Tensor, condition: dict[str, Any]) -> Any:
        there = {k: v.numpy(force=True) if isinstance(v, Tensor) else v for k, v in condition.items()}
        try:
            self._pipe.send((x.numpy(force=True), t.numpy(force=True), there))
        except OSError:
            raise self._lost() from None

    def answer(self, asked: Any, x: Tensor, t: Tensor) -> Prediction:
        try:
            if not self._pipe.poll(PATIENCE):
                raise EOFError
            told = self._pipe.recv()
        except (EOFError, OSError):
            raise self._lost() from None
        if isinstance(told, str):
            raise RuntimeError(told)
        value, kind = told
        return Prediction(torch.from_numpy(value).to(x.device), kind, x, t, self.model.process)

    def close(self) -> None:
        self._end()


def _stop(pipe: Any, process: Any) -> None:
    with contextlib.suppress(OSError, ValueError):
        pipe.close()
    if process.is_alive():
        process.terminate()
    process.join(5)


def _work(pipe: Any, model: Denoiser, threads: int) -> None:
    """In the worker's process: answers until nobody asks any more."""
    torch.set_num_threads(threads)
    while True:
        try:
            x, t, condition = pipe.recv()
        except (EOFError, KeyboardInterrupt):
            return
        try:
            named = {k: torch.from_numpy(v) if hasattr(v, "dtype") else v for k, v in condition.items()}
            with torch.no_grad():
                answer = model(torch.from_numpy(x), torch.from_numpy(t), **named)
            pipe.send((answer.value.numpy(), answer.kind))
        except Exception as error:
            pipe.send(f"{type(error).__name__}: {error}")


def spread(model: Denoiser, count: int) -> Denoiser:
    """The model on `count` devices, where there are so many CUDA devices, or in as many processes on the CPU.

    Raises:
        ValueError: a count below 1, more than there are devices, a model that remembers a run.
    """
    if count < 1:
        raise ValueError(f"a call is shared by at least 1, got {count}")
    if count == 1:
        return model
    if model.device.type == "cuda":
        if count > torch.cuda.device_count():
            raise ValueError(f"{count} devices were asked for, and torch sees {torch.cuda.device_count()}")
        others = [k for k in range(torch.cuda.device_count()) if k != (model.device.index or 0)]
        return Halves(model, [Device(model, torch.device("cuda", k)) for k in others[: count - 1]])
    if model.carries:
        raise ValueError("this model remembers its run, which cannot be in several processes")
    threads = max(1, torch.get_num_threads() // count)
    torch.set_num_threads(threads)
    return Halves(model, [Process(model, threads) for _ in range(count - 1)])
