"""OmniSSR: pictures of a sphere by a model of planar views, fused at every step and brought to the measurement."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor

from fewstep.core.denoiser import Denoiser
from fewstep.core.live import Live
from fewstep.core.methods import Method
from fewstep.core.prediction import Prediction
from fewstep.core.process import Process
from fewstep.operators.operator import Operator
from fewstep.operators.sphere import Tangents
from fewstep.restoration.measured import Problem
from fewstep.sampling.ddim import posterior

METHODS = (
    Method(
        "omni",
        paper="OmniSSR: Zero-shot Omnidirectional Image Super-Resolution (Li et al., 2024)",
        arxiv="2404.10312",
        claim="a sphere's pictures by a model of planar views: no seams; no vector product",
        use="Omni",
        facts={"form": "chain", "measures": ("linear",), "noise": ("none",), "needs": "sphere"},
    ),
    Method(
        "spherical",
        kind="denoiser",
        paper="OmniSSR: Zero-shot Omnidirectional Image Super-Resolution (Li et al., 2024)",
        arxiv="2404.10312",
        claim="equirectangular pictures (C, H, W) by a model of planar views (C, s, s), fused where they overlap",
        use="Spherical",
    ),
)


class Spherical(Denoiser):
    """A model of planar views `(C, s, s)` as one of equirectangular pictures `(C, H, W)`: the views' x0, fused.

    To look at a noisy picture is to interpolate its noise, which makes it weaker than the model takes it for. So a
    state may also be one of the views themselves, `(B, C, views, s, s)`, each with noise of its own: its answers are
    the views', not fused. `omni` runs on these.

    Args:
        size: height and width of the picture. views, field: how many views, and how many degrees they cover
            (`fewstep.operators.sphere.Tangents`).

    Raises:
        ValueError: a model of anything but square pictures; a part of the sphere that no view sees.
    """

    def __init__(self, model: Denoiser, size: Sequence[int], views: int = 18, field: float = 90.0):
        super().__init__()
        if model.shape is None or len(model.shape) != 3 or model.shape[1] != model.shape[2]:
            raise ValueError(f"views of a sphere are square pictures (C, s, s), and the model's shape is {model.shape}")
        height, width = size
        self.model, self.process = model, model.process
        self.shape = (model.shape[0], int(height), int(width))
        self.tangents = Tangents(views, model.shape[1], field).fit(self.shape)
        seen = self.tangents.adjoint(torch.ones(1, *self.tangents.out))
        if hidden := int((seen[0, 0] == 0).sum()):
            raise ValueError(
                f"{hidden} of {height * width} pixels are seen by none of {views} views of {model.shape[1]} pixels and"
                f" {field:g} degrees: take more views, or a smaller picture"
            )
        self.conditions, self.value_range, self.data_std = model.conditions, model.value_range, model.facts.data_std

    def config(self) -> dict[str, Any]:
        views, field = self.tangents.given, self.tangents.field
        return {"model": self.model, "size": self.shape[1:], "views": views, "field": field}  # type: ignore[index]

    def forward(self, x: Tensor, t: Tensor, **condition: Any) -> Prediction:
        views = x if x.ndim == 5 else self.tangents(x)
        count = views.shape[2]

        def each(value: Any) -> Any:
            return value.repeat_interleave(count, 0) if isinstance(value, Tensor) and value.ndim else value

        told: Mapping[str, Any] = {name: each(value) for name, value in condition.items()}
        answer = self.model(views.transpose(1, 2).flatten(0, 1), each(t), **told)

        def together(value: Tensor) -> Tensor:
            return value.unflatten(0, (-1, count)).transpose(1, 2)

        if x.ndim == 5:
            return Prediction(together(answer.value), answer.kind, x, t, self.process)
        return Prediction(self.tangents.fused(together(answer.x0)), "x0", x, t, self.process)


@dataclass(frozen=True)
class Omni:
    """Ancestral steps of the views, each with noise of its own, with an x0 that they share: what they answer is fused
    on the sphere, brought to the measurement, `E + A^+ (y - A E)`, and looked at again (algorithm 1). The last such
    picture is the result.
    """

    def check(self, model: Denoiser, operator: Operator, law: Any) -> None:
        """`ValueError` unless the model is one of a sphere, and the measurement without noise."""
        if not isinstance(model, Spherical):
            raise ValueError(
                "'omni' takes a model of a sphere's views, fewstep.restoration.omni.Spherical(model, size)"
            )
        if not getattr(law, "none", False):
            raise ValueError("'omni' meets a linear measurement exactly: leave the noise out, or 'dps' takes it")

    def walk(self, live: Live, process: Process, times: Sequence[float], problem: Problem) -> Tensor:
        assert isinstance(problem.model, Spherical)
        y, operator, tangents = live.condition["y"], problem.operator, problem.model.tangents
        start = live.start()

        def noise(number: int) -> Tensor:
            return live.source.normal(number, (len(start), *tangents.out), start.device, start.dtype)

        x = process.sigma(times[0]) * noise(1)
        whole = start
        for number, (a, b) in enumerate(pairwise(times)):
            whole = tangents.fused(live.evaluate(x, a).x0)
            whole = whole + operator.pinv(y - operator(whole))
            s, of_x, of_x0 = posterior(process, a, b)
            x = of_x * x + of_x0 * tangents(whole)
            if s > 0:
                x = x + s * noise(number + 2)
        return whole
