"""Learning from one picture: one small network for all scales of a pyramid, and sampling from coarse to fine (SinDDM).

The coarsest scale starts from noise; each finer one adds its detail to the one before, under a process of its own
(`fewstep.processes.blend`), starting where the noise is as strong as the detail.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from fewstep.core.methods import Method
from fewstep.core.noise import Noise
from fewstep.core.prediction import Prediction, expand
from fewstep.data.pyramid import Pyramid, scaled
from fewstep.denoisers.detail import Detail
from fewstep.denoisers.network import NetworkDenoiser
from fewstep.networks.convolution import Convolution
from fewstep.processes.blend import Blend
from fewstep.processes.flow import Flow

METHODS = (
    Method(
        "sinddm",
        kind="denoiser",
        paper="SinDDM: A Single Image Denoising Diffusion Model (Kulikov et al., 2023)",
        arxiv="2211.16582",
        claim="new pictures of any size with the patches of the one it learned from",
        use="SingleImage",
    ),
)


class SingleImage(NetworkDenoiser):
    """The denoiser that `fit` trains on a `Pyramid` (which is also its data), with a `sample` of its own.

    model = SingleImage(pyramid); model = fit(model, pyramid, steps=2000, batch=8); model.sample(4, (48, 96))
    """

    def __init__(self, pyramid: Pyramid, width: int = 32, depth: int = 4) -> None:
        channels = pyramid.sharp(0).shape[1]
        super().__init__(Convolution(channels, width, depth, classes=pyramid.scales), Flow(), predicts="flow")
        self.pyramid = pyramid

    def config(self) -> dict[str, Any]:
        made, own = self.pyramid, self.network.config()  # type: ignore[operator]
        picture = [made.sharp(0).shape[1], *made.size]
        plain = {name: getattr(made, name) for name in ("factor", "coarsest", "crop", "starts")}
        return {"picture": picture, **plain, "width": own["width"], "depth": own["depth"]}

    @classmethod
    def from_config(cls, options: dict[str, Any], state: Mapping[str, Tensor]) -> SingleImage:
        pyramid = Pyramid(torch.zeros(options["picture"]), options["factor"], options["coarsest"], options["crop"])
        pyramid.starts = list(options["starts"])  # of the picture's own detail
        return cls(pyramid, options["width"], options["depth"])

    def forward(self, x: Tensor, t: Tensor, **condition: Any) -> Prediction:
        """The prediction for the coarsest scale, where sampling begins; `detail` is the denoiser of any scale."""
        return super().forward(x, t, label=torch.zeros(len(x), dtype=torch.long, device=x.device))

    def detail(self, scale: int, y: Tensor) -> Detail:
        """The denoiser of a scale's detail, given coarser pictures y (B, C, h, w), zeros at the coarsest."""
        return Detail(self.network, Blend(self.pyramid.starts[scale]) if scale else Flow(), scale, y)

    def loss_pair(self, x0: Tensor, eps: Tensor, t: Tensor, **condition: Any) -> tuple[Tensor, Tensor]:
        """`eps - x0` and the network's guess, at the share t in (0, 1] of each sample's way to its scale's start."""
        scale, y = condition["scale"], condition["y"]
        time = t * torch.tensor(self.pyramid.starts, dtype=t.dtype, device=t.device)[scale]
        gamma = torch.where(scale > 0, t, torch.zeros_like(t))
        mixed = torch.lerp(x0, y, expand(gamma, x0))
        seen = torch.lerp(mixed, eps, expand(time, x0))
        return self.network(seen, time.float(), label=scale), eps - x0

    @torch.no_grad()
    def sample(
        self, n: int, canvas: tuple[int, int] | None = None, steps: int = 10, solver: str = "dpmpp-2m", seed: int = 0
    ) -> Tensor:
        """n pictures (n, C, *canvas), by default of the picture's own size, within -1 and 1.

        steps: at every scale; the solver must not draw noise. Raises ValueError for n below 1, a canvas
        with a side below 2 and stochastic solvers.
        """
        from fewstep.sampling.build import plan

        if n < 1 or (canvas is not None and (len(canvas) != 2 or min(canvas) < 2)):
            raise ValueError(f"n must be at least 1 and a canvas (height, width) of at least 2, got {n} and {canvas}")
        channels, device = self.pyramid.sharp(0).shape[1], self.pyramid.sharp(0).device
        x = torch.zeros(n, channels, 2, 2, device=device)
        for scale, size in enumerate(self.pyramid.sizes(canvas)):
            y = torch.zeros(n, channels, *size, device=device) if scale == 0 else scaled(x, size)
            level = self.detail(scale, y)
            made = plan(level.process, solver, steps)
            if made.stochastic:
                raise ValueError(f"{solver!r} draws noise at every step, which scales would share: use an ODE's solver")
            noise = Noise(seed).normal(-scale, (n, channels, *size), device)
            x = level.decode(made(level, noise)).clamp(-1, 1)
        return x
