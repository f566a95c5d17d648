"""Learning from one picture: a pyramid of its scales, one small network, and sampling from coarse to fine.

At every scale but the coarsest the forward process leads from the sharp picture x towards the coarser one y, scaled up,
while it adds noise (SinDDM):

    x_t = alpha (1 - gamma) x + alpha gamma y + sigma eps,    gamma = t / T, so that x has gone at the start t = T.

With the detail `d = x - y` and `u_t = x_t - alpha y` this is `u_t = alpha (1 - gamma) d + sigma eps`: a Gaussian
process of the detail, in which every solver works as it is. T lies where the noise is as strong as the detail; below it
the coarser picture says more than the noise hides. The network sees x_t, the time and the scale, never y or x.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from fewstep.core.denoiser import Denoiser
from fewstep.core.methods import Method
from fewstep.core.noise import Noise
from fewstep.core.prediction import Prediction, expand
from fewstep.core.process import Process
from fewstep.denoisers.network import NetworkDenoiser
from fewstep.networks.convolution import Convolution
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


@dataclass(frozen=True)
class Blend(Process):
    """`alpha = (1 - t) (1 - t / T)`, `sigma = t`, t from T = t_max (no detail left) to 0: the rectified flow's noise,
    with the detail fading to nothing on the way."""

    name = "blend"
    t_max: float = 0.5
    t_min: float = 1e-3
    t_zero = 0.0

    def __post_init__(self) -> None:
        if not 0 < self.t_min < self.t_max < 1:
            raise ValueError(f"blend needs 0 < t_min < t_max < 1, got {self.t_min} and {self.t_max}")

    def _alpha(self, t: Tensor) -> Tensor:
        return (1 - t) * (1 - t / self.t_max)

    def _sigma(self, t: Tensor) -> Tensor:
        return t.clone()

    def _log_snr(self, t: Tensor) -> Tensor:
        return torch.log1p(-t) + torch.log1p(-t / self.t_max) - t.log()

    def _dalpha(self, t: Tensor) -> Tensor:
        return (2 * t - 1) / self.t_max - 1

    def _dsigma(self, t: Tensor) -> Tensor:
        return torch.ones_like(t)

    def _time(self, log_snr: Tensor) -> Tensor:
        # The smaller root of t^2 - b t + T = 0, b = 1 + T + T e^log_snr, divided by b so that nothing overflows.
        top = self.t_max
        inverse = 1 / (1 + top + top * log_snr.exp())
        return 2 * top * inverse / (1 + (1 - 4 * top * inverse.square()).clamp_min(0).sqrt())


def scaled(image: Tensor, size: tuple[int, int]) -> Tensor:
    """Pictures (B, C, H, W) at another size, bilinear, with the blur that a reduction needs."""
    return F.interpolate(image, size=size, mode="bilinear", align_corners=False, antialias=True)


class Pyramid(nn.Module):
    """The scales of one picture (C, H, W), coarsest first: sharp ones, and what the next coarser one is at their size.

    Each scale is `factor` times the one before; the shorter side of the coarsest is at least `coarsest` pixels.
    `starts` are the times T, 1 for the coarsest, which starts from noise alone. Data source of `fit`: all of a batch
    are random crops, at most `crop` pixels wide, of one scale; scales are drawn in equal shares.

    Raises ValueError for a picture of another shape, one smaller than `coarsest`, or a factor of 1 or less.
    """

    def __init__(self, image: Tensor, factor: float = 1.4, coarsest: int = 14, crop: int = 64) -> None:
        super().__init__()
        if image.ndim != 3 or not image.is_floating_point():
            raise ValueError(f"the picture must be a float tensor (C, H, W), got {tuple(image.shape)} of {image.dtype}")
        if not factor > 1 or crop < 2 or not 2 <= coarsest <= min(image.shape[1:]):
            raise ValueError(
                f"the factor must be above 1, the crop at least 2 and coarsest 2 to {min(image.shape[1:])}, the"
                f" picture's shorter side, got {factor}, {crop} and {coarsest}"
            )
        self.factor, self.crop = factor, crop
        self.size = (int(image.shape[1]), int(image.shape[2]))
        self.scales = 1
        while min(self.size) / factor**self.scales >= coarsest:
            self.scales += 1
        self.starts = [1.0]
        for scale in range(self.scales):
            sharp = scaled(image[None], self.sizes()[scale])
            blurred = torch.zeros_like(sharp) if scale == 0 else scaled(self.sharp(scale - 1), self.sizes()[scale])
            self.register_buffer(f"sharp_{scale}", sharp)
            self.register_buffer(f"blurred_{scale}", blurred)
            if scale:
                detail = float((sharp - blurred).double().square().mean().sqrt())
                # sigma / alpha = t / (1 - t) = detail; a picture without any still needs some room to run in
                self.starts.append(min(max(detail / (1 + detail), 0.05), 0.95))

    def sharp(self, scale: int) -> Tensor:
        """The picture (1, C, h, w) at a scale."""
        return self.get_buffer(f"sharp_{scale}")

    def blurred(self, scale: int) -> Tensor:
        """The next coarser picture at this scale's size, (1, C, h, w); zeros below the coarsest."""
        return self.get_buffer(f"blurred_{scale}")

    def sizes(self, canvas: tuple[int, int] | None = None) -> list[tuple[int, int]]:
        """Height and width of every scale, for the picture itself or for another canvas."""
        height, width = canvas or self.size
        shrunk = [self.factor ** (self.scales - 1 - scale) for scale in range(self.scales)]
        return [(max(2, round(height / by)), max(2, round(width / by))) for by in shrunk]

    def process(self, scale: int) -> Process:
        """The process of a scale's detail."""
        return Blend(self.starts[scale]) if scale else Flow()

    def __call__(self, count: int, generator: torch.Generator) -> tuple[Tensor, Mapping[str, Tensor]]:
        scale = int(torch.randint(self.scales, (1,), generator=generator))
        sharp, blurred = self.sharp(scale)[0], self.blurred(scale)[0]
        sides = [min(self.crop, side) for side in sharp.shape[1:]]
        top, left = (
            torch.randint(full - side + 1, (count,), generator=generator).tolist()
            for full, side in zip(sharp.shape[1:], sides, strict=True)
        )
        crops = [
            torch.stack([part[:, i : i + sides[0], j : j + sides[1]] for i, j in zip(top, left, strict=True)])
            for part in (sharp, blurred)
        ]
        return crops[0], {"y": crops[1], "scale": torch.full((count,), scale)}


class Level(Denoiser):
    """The denoiser of one scale's detail beside coarser pictures y (B, C, h, w)."""

    def __init__(self, network: nn.Module, process: Process, scale: int, y: Tensor) -> None:
        super().__init__()
        self.network, self.process, self.scale, self.y = network, process, scale, y

    def forward(self, x: Tensor, t: Tensor, **condition: Any) -> Prediction:
        y = self.y.to(x.dtype)
        seen = x + expand(1 - t, x) * y  # both processes are the rectified flow's in the picture
        label = torch.full((len(x),), self.scale, device=x.device)
        value = self.network(seen.float(), t.float().expand(len(x)), label=label).to(x.dtype)
        return Prediction(value + y, "flow", x, t, self.process)  # eps - d = (eps - x0) + y

    def decode(self, x: Tensor, **condition: Any) -> Tensor:
        return x + self.y.to(x.dtype)


class SingleImage(NetworkDenoiser):
    """What `fit` trains on a `Pyramid` (which is also its data) and `sample` draws from.

    model = SingleImage(pyramid); model = fit(model, pyramid, steps=2000, batch=8); model.sample(4, (48, 96))
    """

    def __init__(self, pyramid: Pyramid, width: int = 32, depth: int = 4) -> None:
        channels = pyramid.sharp(0).shape[1]
        super().__init__(Convolution(channels, width, depth, classes=pyramid.scales), Flow(), predicts="flow")
        self.pyramid = pyramid

    def forward(self, x: Tensor, t: Tensor, **condition: Any) -> Prediction:
        raise ValueError("a model of one picture has a denoiser at each scale: use its own sample(n, canvas)")

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

        steps: at every scale; the solver must not draw noise of its own. Raises ValueError for n below 1, a canvas
        with a side below 2 and stochastic solvers.
        """
        from fewstep.sampling.build import plan

        if n < 1 or (canvas is not None and (len(canvas) != 2 or min(canvas) < 2)):
            raise ValueError(f"n must be at least 1 and a canvas (height, width) of at least 2, got {n} and {canvas}")
        channels, device = self.pyramid.sharp(0).shape[1], self.pyramid.sharp(0).device
        x = torch.zeros(n, channels, 2, 2, device=device)
        for scale, size in enumerate(self.pyramid.sizes(canvas)):
            y = torch.zeros(n, channels, *size, device=device) if scale == 0 else scaled(x, size)
            level = Level(self.network, self.pyramid.process(scale), scale, y)
            made = plan(level.process, solver, steps)
            if made.stochastic:
                raise ValueError(f"{solver!r} draws noise at every step, which scales would share: use an ODE's solver")
            noise = Noise(seed).normal(-scale, (n, channels, *size), device)
            x = level.decode(made(level, noise)).clamp(-1, 1)
        return x
