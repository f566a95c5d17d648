"""Distribution backtracking: the teacher's own way towards the untrained student, followed back by the student."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load as load_tensors
from safetensors.torch import save as dump_tensors
from torch import Tensor, nn

from fewstep.core.denoiser import Denoiser
from fewstep.core.errors import suggest
from fewstep.core.files import write
from fewstep.core.methods import Method, made
from fewstep.distillation.adapter import apart, own_state
from fewstep.distillation.matching import Matching
from fewstep.distillation.method import Batch, Distiller, Setting
from fewstep.training.checkpoint import part

METHODS = (
    Method(
        "disback",
        paper="Distribution Backtracking Builds A Faster Convergence Trajectory for Diffusion Distillation"
        " (Zhang et al., 2024)",
        arxiv="2408.15991",
        claim="teachers on the way to the student's first law, taken backwards, close its early score gap",
        use="DisBack",
        facts={"student": "jump", "data": False, "pairing": False, "players": ("fake", "student"), "steps": "any"},
    ),
)

FOLDER = "path"  # in the run's
INNER = ("diff-instruct", "dmd2", "sid", "sim")


class DisBack(Distiller):
    """Two stages over one method of distribution matching (Zhang et al., algorithms 1 and 2).

    In the first the student waits, and the method's fake score, which begins as the teacher, trains on the student's
    samples by its own loss; `path` of its weights are kept on the way, evenly spread, neither its first nor its last.
    In the second the method runs as ever, with the last of these weights as its teacher, then the one before, and so
    on back to the real teacher.

    The path is that of the network itself: guidance around the teacher acts in the last part alone. The weights are
    kept as files in the run's folder, or without one off the device in memory.

    Args:
        method: "diff-instruct", "dmd2", "sid" or "sim". options: the method's.
        path: weights that are kept. record: share of the iterations that the first stage takes.
        last: share of the second stage's iterations that have the real teacher; the others are divided evenly.

    Raises:
        ValueError: another method, an unknown option of it, a path below 1, shares outside (0, 1), a real teacher that
            has fewer iterations than one of the path's.
    """

    kind = "jump"

    def __init__(
        self, setting: Setting, method: str = "diff-instruct", path: int = 4, record: float = 0.1, last: float = 0.5,
        options: Mapping[str, Any] | None = None,
    ) -> None:  # fmt: skip
        if method not in INNER:
            raise suggest("method to backtrack with", method, INNER)
        if path < 1 or not (0 < record < 1 and 0 < last < 1):
            raise ValueError(f"path must be at least 1, record and last in (0, 1), got {path}, {record} and {last}")
        if last < (1 - last) / path:
            raise ValueError(f"the real teacher must have the longest share, got last={last} beside a path of {path}")
        self.setting = setting
        self.inner: Matching = made("distiller", method, 1, **options or {})(setting)
        self.student, self.players = self.inner.student, self.inner.players
        self.record, self.last, self.length = record, last, path
        self.path: list[dict[str, Tensor] | Path] = []
        self.past = apart(self.inner.fake).requires_grad_(False)  # holds one of the path's weights
        self._held: int | None = None
        self._wait()

    @property
    def recorded(self) -> int:
        """Iterations of the first stage."""
        return max(1, round(self.record * self.setting.iterations))

    def due(self, k: int) -> int:
        """The number of turns of the fake score after which the path's k-th weights are kept."""
        return max(1, round(self.recorded * (k + 1) / (self.length + 1)))

    def _wait(self) -> None:
        """Lets the fake score's turns record, and those of the student pass in the first stage."""
        fake, student = self.players["fake"], self.players["student"]
        fake_loss, loss, backward = fake.loss, student.loss, student.backward

        def recording(drawn: Batch) -> Tensor:
            while len(self.path) < self.length and self.setting.step >= self.due(len(self.path)):
                self.path.append(self._kept())
            return fake_loss(drawn)

        def waiting(drawn: Batch) -> Tensor:
            if self.setting.step < self.recorded:
                return drawn["z"].new_zeros(len(drawn["z"]))
            self.inner.teacher = self.teacher()
            return loss(drawn)

        def gradients(losses: Tensor, drawn: Batch, parameters: Sequence[nn.Parameter]) -> None:
            if self.setting.step < self.recorded:
                return  # without gradients the optimiser moves nothing
            if backward is None:
                losses.mean().backward(inputs=list(parameters))
            else:
                backward(losses, drawn, parameters)

        fake.loss, student.loss, student.backward = recording, waiting, gradients

    def _kept(self) -> dict[str, Tensor] | Path:
        """The fake score's present weights, or the file in which they are now."""
        weights, folder = self.inner.fake.state_dict(), self.setting.folder
        kept = {name: weights[name].to("cpu", copy=True) for name in own_state(self.past, self.inner.fake)}
        if folder is None:
            return kept
        if self.setting.share[0] == 0:  # one process writes, long before the others read
            (folder / FOLDER).mkdir(parents=True, exist_ok=True)
            write(self._file(len(self.path)), dump_tensors(kept))
        return self._file(len(self.path))

    def _file(self, k: int) -> Path:
        assert self.setting.folder is not None
        return self.setting.folder / FOLDER / f"{k}.safetensors"

    def teacher(self) -> Denoiser:
        """The teacher of iteration `setting.step` of the second stage."""
        share = (self.setting.step - self.recorded) / (self.setting.iterations - self.recorded)
        if share >= 1 - self.last:
            return self.setting.teacher
        index = self.length - 1 - int(share / (1 - self.last) * self.length)
        if index != self._held:
            kept = self.path[index]
            weights = load_tensors(kept.read_bytes()) if isinstance(kept, Path) else kept
            self.past.load_state_dict(weights, strict=False)
            self._held = index
        return self.setting.counted(self.past)

    def times(self) -> tuple[float, ...]:
        return self.inner.times()

    def draw(self, batch: int, generator: torch.Generator) -> Batch:
        return self.inner.draw(batch, generator)

    def copies(self) -> list[nn.Module]:
        kept = self.length if self.setting.folder is None and self.setting.device.type == "cpu" else 0
        return [self.inner.fake] * (1 + kept)

    def state(self) -> dict[str, Tensor]:
        found = {f"inner.{name}": value for name, value in self.inner.state().items()}
        if self.setting.folder is not None:
            return found | {"files": torch.tensor(len(self.path))}
        kept = enumerate(own for own in self.path if not isinstance(own, Path))
        return found | {f"path.{k}.{name}": value for k, own in kept for name, value in own.items()}

    def restore(self, tensors: Mapping[str, Tensor]) -> None:
        if self.setting.folder is not None:
            self.path = [self._file(k) for k in range(int(tensors["files"]))]
            if lost := [file for file in self.path if isinstance(file, Path) and not file.is_file()]:
                raise ValueError(f"{lost[0]} is gone, which this run goes back to: begin it anew")
        else:
            kept = part(tensors, "path")
            count = len({name.split(".")[0] for name in kept})
            self.path = [part(kept, str(k)) for k in range(count)]
        self._held = None
        self.inner.restore(part(tensors, "inner"))
