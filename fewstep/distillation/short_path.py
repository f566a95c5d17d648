"""The shortest path: where two hops of DDIM come nearer to the sample than one, the one is taught what they reach."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor, nn

from fewstep.core.methods import Method
from fewstep.core.prediction import expand
from fewstep.distillation.fake import denoising
from fewstep.distillation.levels import at_shares
from fewstep.distillation.method import Batch, Distiller, Setting
from fewstep.distillation.pairs import Behind
from fewstep.distillation.teacher import BACKWARD, jump

METHODS = (
    Method(
        "shortdf",
        paper="Optimizing for the Shortest Path in Denoising Diffusion Model (Chen et al., 2025)",
        arxiv="2503.03265",
        claim="long hops learn what two shorter ones reach, wherever those come nearer to the sample",
        use="ShortDF",
        facts={
            "student": "denoiser",
            "data": True,
            "pairing": False,
            "players": ("student",),
            "steps": "any",
            "lr": 3e-4,
        },
    ),
)

AVERAGE = 0.95  # decay of the path network


class ShortDF(Distiller):
    """Relaxation of edges, as Dijkstra's of a graph whose nodes are times and whose lengths are residuals of x0.

    At a noised sample `x_t`, two hops lead by the teacher, the frozen *edge* network, from t to k, and by the average
    of the student, the *path* network, to the clean end; one hop is the student's own answer:

        x_k = J(x_t, t, k; D(x_t, t)),   y = f-(x_k, k),   f = f(x_t, t)

    Number by number, where `|x0 - f|` exceeds `|x0 - y|` by more than the margin the longer way is relaxed: its target
    is y in place of x0. Elsewhere the loss is the ordinary one. Both are the network's own denoising loss, so with a
    margin that nothing exceeds it is plain training. t and then k are even on the way from the start to the smallest
    noise in `(sigma / alpha)^(1 / 7)`.

    Args:
        margin: by which two hops must be shorter, in the data's deviations. average: decay of the path network, 0 for
            the student itself.

    Raises:
        ValueError: a margin below 0, a decay outside [0, 1).
    """

    kind = "denoiser"

    def __init__(self, setting: Setting, margin: float = 0.01, average: float = AVERAGE) -> None:
        if not margin >= 0:
            raise ValueError(f"margin must be at least 0, got {margin}")
        if not 0 <= average < 1:
            raise ValueError(f"average must be a decay of at least 0 and below 1, got {average}")
        self.setting, self.margin, self.average = setting, margin * setting.data_std, average
        self.student = setting.student()
        self.path = Behind(setting, self.student)
        self.players = {"student": setting.player(self.student, self._loss, average=True)}
        self.relaxed = torch.zeros((), device=setting.device)  # the share of numbers in the last batch

    def draw(self, batch: int, generator: torch.Generator) -> Batch:
        setting = self.setting
        x0, condition = setting.real(batch, generator)
        share, further = setting.uniform(batch, generator, 2).T
        return {
            "x0": x0,
            "condition": condition,
            "eps": setting.noise(batch, generator),
            "t": at_shares(setting.process, setting.start, share),
            "k": at_shares(setting.process, setting.start, share + (1 - share) * further),
        }

    @torch.no_grad()
    def hops(self, x: Tensor, drawn: Batch) -> tuple[Tensor, Tensor]:
        """x0 of one hop from states (B, *shape) at t, and of two by way of k."""
        setting, t, k, condition = self.setting, drawn["t"], drawn["k"], drawn["condition"]
        x_k = jump(setting.process, x, t, k, setting.teacher(x, t, **condition).x0)
        two = self.path.at(self.average)(x_k, k, **condition).x0
        return setting.counted(self.student)(x, t, **condition).x0, two

    @torch.no_grad()
    def targets(self, x: Tensor, drawn: Batch) -> Tensor:
        """The sample itself, and in its place what two hops reach where that is nearer to it by the margin."""
        x0 = drawn["x0"]
        one, two = self.hops(x, drawn)
        shorter = (x0 - one).abs() - (x0 - two).abs() > self.margin
        self.relaxed = shorter.float().mean()
        return torch.where(shorter, two.to(x0.dtype), x0)

    def _loss(self, drawn: Batch) -> Tensor:
        setting, t, x0, eps = self.setting, drawn["t"], drawn["x0"], drawn["eps"]
        target = self.targets(setting.noised(x0, eps, t), drawn)
        # The noise with which the target is at the same state.
        ratio = expand(setting.process.alpha(t) / setting.process.sigma(t), x0)
        setting.count.evaluations += BACKWARD * len(x0)
        return denoising(self.student, target, eps + ratio * (x0 - target), t, drawn["condition"])

    def copies(self) -> list[nn.Module]:
        return [self.student] if self.average else []

    def state(self) -> dict[str, Tensor]:
        return self.path.state() | {"relaxed": self.relaxed.clone()}

    def restore(self, tensors: Mapping[str, Tensor]) -> None:
        self.path.restore(tensors)
        self.relaxed = tensors["relaxed"].to(self.setting.device)

    def figures(self) -> dict[str, float]:
        return {"relaxed": float(self.relaxed)}
