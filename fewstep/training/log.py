"""What a training run reports: a JSON line every few steps, a progress bar, and TensorBoard on request."""

from __future__ import annotations

import json
import math
import os
from pathlib import Path
from types import TracebackType
from typing import Any

FILE = "log.jsonl"


class Log:
    """Appends records to `out/log.jsonl`, each with its "step"; continues after `step` when a run resumes.

    Lines of later steps, and a truncated line, are dropped first: the steps after a checkpoint run again.
    With `tensorboard` the numbers also go to `out/tensorboard`; ValueError when that package is missing.
    """

    def __init__(self, out: Path, step: int, tensorboard: bool = False) -> None:
        path = out / FILE
        kept = []
        if path.exists():
            for line in path.read_text("utf-8").splitlines():
                try:
                    record = json.loads(line)
                except json.JSONDecodeError:
                    break
                if record["step"] > step:
                    break
                kept.append(line + "\n")
            temporary = path.with_name(f".{FILE}")
            temporary.write_text("".join(kept), "utf-8")
            os.replace(temporary, path)
        self._file = open(path, "a", encoding="utf-8")
        self._board = _board(out / "tensorboard", step) if tensorboard else None

    def write(self, record: dict[str, Any]) -> None:
        """Writes one line, flushed at once."""
        self._file.write(json.dumps(record) + "\n")
        self._file.flush()
        if self._board is not None:
            for name, value in record.items():
                if name != "step" and isinstance(value, int | float):
                    self._board.add_scalar(name, value, record["step"])
            self._board.flush()

    def __enter__(self) -> Log:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._file.close()
        if self._board is not None:
            self._board.close()


def last_loss(out: Path) -> float:
    """The loss of a run's last record; nan where there is none."""
    path, found = out / FILE, math.nan
    for line in path.read_text("utf-8").splitlines() if path.exists() else []:
        found = json.loads(line).get("loss", found)
    return found


def check_tensorboard() -> None:
    """Raises ValueError when TensorBoard is not installed."""
    try:
        import torch.utils.tensorboard  # noqa: F401
    except ImportError:
        raise ValueError("tensorboard=True needs TensorBoard: pip install 'fewstep[tensorboard]'") from None


def _board(folder: Path, step: int) -> Any:
    check_tensorboard()
    from torch.utils.tensorboard import SummaryWriter

    return SummaryWriter(str(folder), purge_step=step + 1)


class Bar:
    """A progress bar with the loss and the time left, and plain lines above it. Silent when `shown` is False.

    word: what goes on. step, steps: done, and in all. seconds: the time in all, which is then shown in place of steps;
    elapsed: of it, what is over.
    """

    def __init__(
        self, shown: bool, word: str, step: int, steps: int, elapsed: float = 0.0, seconds: float | None = None
    ) -> None:
        from rich.console import Console
        from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

        timed = seconds is not None
        self.console, self._timed = Console(stderr=True, quiet=not shown), timed
        self._progress = Progress(
            TextColumn(word),
            BarColumn(),
            TextColumn("{task.completed:.0f}/{task.total:.0f} s") if timed else MofNCompleteColumn(),
            TextColumn("{task.fields[loss]}"),
            TimeRemainingColumn(elapsed_when_finished=True),
            console=self.console,
            disable=not (shown and self.console.is_terminal),
        )
        self._task = self._progress.add_task(word, total=seconds if timed else steps, loss="")
        self.reach(step, elapsed)

    def say(self, text: str) -> None:
        """A line of text above the bar."""
        self.console.print(text, highlight=False, markup=False, soft_wrap=True)

    def reach(self, step: int, elapsed: float) -> None:
        """So many steps are done, so many seconds over."""
        self._progress.update(self._task, completed=elapsed if self._timed else step)

    def show(self, record: dict[str, Any]) -> None:
        """The newest record: on a terminal beside the bar, elsewhere as a line."""
        loss = f"loss {record['loss']:.4f}"
        if self._progress.disable:
            speed = f", {record['images_per_s']:.0f} images/s" if "images_per_s" in record else ""
            self.say(f"step {record['step']}: {loss}{speed}")
        else:
            self._progress.update(self._task, loss=loss)

    def __enter__(self) -> Bar:
        self._progress.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._progress.stop()


def spoken_time(seconds: float) -> str:
    """A duration in words: "45 s", "12 min", "3 h 20 min"."""
    if seconds < 90:
        return f"{seconds:.2g} s" if seconds < 10 else f"{seconds:.0f} s"
    minutes = round(seconds / 60)
    return f"{minutes} min" if minutes < 90 else f"{minutes // 60} h {minutes % 60} min"
