"""Distribution backtracking: the teacher's own way towards the untrained student, followed back by the student."""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from fewstep.core.denoiser import Denoiser
from fewstep.core.errors import suggest
from fewstep.core.methods import Method, made
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

INNER = ("diff-instruct", "dmd2", "sid", "sim")


class DisBack(Distiller):
    """Two stages over one method of distribution matching (Zhang et al., algorithms 1 and 2).

    In the first the student waits, and the method's fake score, which begins as the teacher, trains on the student's
    samples by its own loss; `path` of its weights are kept on the way, evenly spread, neither its first nor its last.
    In the second the method runs as ever, with the last of these weights as its teacher, then the one before, and so
    on back to the real teacher.

    The path is that of the network itself: guidance around the teacher acts in the last part alone. The weights are
    kept off the device, and in checkpoints.

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
        self.path: list[dict[str, Tensor]] = []
        self.past = copy.deepcopy(self.inner.fake).requires_grad_(False)  # holds one of the path's weights
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
                weights = self.inner.fake.state_dict().items()
                self.path.append({name: value.to("cpu", copy=True) for name, value in weights})
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

    def teacher(self) -> Denoiser:
        """The teacher of iteration `setting.step` of the second stage."""
        share = (self.setting.step - self.recorded) / (self.setting.iterations - self.recorded)
        if share >= 1 - self.last:
            return self.setting.teacher
        index = self.length - 1 - int(share / (1 - self.last) * self.length)
        if index != self._held:
            self.past.load_state_dict(self.path[index])
            self._held = index
        return self.setting.counted(self.past)

    def times(self) -> tuple[float, ...]:
        return self.inner.times()

    def draw(self, batch: int, generator: torch.Generator) -> Batch:
        return self.inner.draw(batch, generator)

    def state(self) -> dict[str, Tensor]:
        kept = {f"path.{k}.{name}": value for k, own in enumerate(self.path) for name, value in own.items()}
        return kept | {f"inner.{name}": value for name, value in self.inner.state().items()}

    def restore(self, tensors: Mapping[str, Tensor]) -> None:
        kept = part(tensors, "path")
        count = len({name.split(".")[0] for name in kept})
        self.path, self._held = [part(kept, str(k)) for k in range(count)], None
        self.inner.restore(part(tensors, "inner"))
