"""Claims of pictures of a sphere: analytic patterns at twice the resolution, by a prior of 8 x 8 planar patches."""

from __future__ import annotations

import functools
import math
from typing import Any

import torch
from torch import Tensor

import fewstep as fs
from claims.claim import Claim, Outcome, experiment, over_seeds, slow, tolerance
from claims.common import F64, VP, GaussianMixture
from fewstep.core.denoiser import Denoiser
from fewstep.core.prediction import Prediction
from fewstep.operators.noise import Gaussian
from fewstep.operators.sphere import Tangents
from fewstep.restoration.measured import Measured
from fewstep.restoration.omni import Omni, Spherical
from fewstep.restoration.restore import walking

SIZE, PATCH, VIEWS, FIELD = (16, 32), 8, 48, 60.0
PATCHES, COMPONENTS, PICTURES, NFE = 4000, 12, 8, 20


def pattern(points: Tensor, generator: torch.Generator) -> Tensor:
    """Values in -1 to 1 at unit vectors `(B, ..., 3)`, a pattern for each of B: two soft-edged waves along directions
    of space."""
    count, total = len(points), torch.zeros(points.shape[:-1], dtype=F64)
    for _ in range(2):
        along = torch.randn(count, 3, generator=generator, dtype=F64)
        along = along / along.norm(dim=1, keepdim=True)
        frequency, phase = (torch.rand(count, generator=generator, dtype=F64) for _ in range(2))
        height = torch.einsum("b...c,bc->b...", points, along)
        shape = (-1, *[1] * (height.ndim - 1))
        turn = (2 + 4 * frequency).view(shape) * height + 2 * math.pi * phase.view(shape)
        total = total + torch.tanh(2 * turn.sin()) / 2
    return total


def _unit(longitude: Tensor, latitude: Tensor) -> Tensor:
    longitude, latitude = torch.broadcast_tensors(longitude, latitude)
    return torch.stack((latitude.cos() * longitude.sin(), latitude.sin(), latitude.cos() * longitude.cos()), -1)


@functools.cache
def prior(seed: int) -> GaussianMixture:
    """Fitted to patches of planes: tangent to a sphere, between the views' and the grid's pixels in size."""
    generator = torch.Generator().manual_seed(seed + 1000)
    pitch = torch.deg2rad(7.5 + 3.75 * torch.rand(PATCHES, 1, 1, generator=generator, dtype=F64))
    at = (torch.arange(PATCH, dtype=F64) - (PATCH - 1) / 2) * pitch[:, 0]
    x, y = torch.broadcast_tensors(at[:, None, :], -at[:, :, None])
    points = torch.stack((x, y, torch.ones_like(x)), -1)
    patches = pattern(points / points.norm(dim=-1, keepdim=True), generator)
    return GaussianMixture.fitted(patches[:, None], COMPONENTS, VP(), seed)


@functools.cache
def problem(seed: int) -> tuple[Tensor, Tensor, Any]:
    """Pictures, their measurements at half the resolution, and the operator."""
    height, width = SIZE
    latitude = math.pi * (0.5 - (torch.arange(height, dtype=F64) + 0.5) / height)[:, None]
    longitude = 2 * math.pi * ((torch.arange(width, dtype=F64) + 0.5) / width - 0.5)
    points = _unit(longitude, latitude).expand(PICTURES, -1, -1, -1)
    truth = pattern(points, torch.Generator().manual_seed(seed))[:, None]
    a = fs.operators.Downsample(2).fit((1, *SIZE))
    return truth, a(truth), a


@functools.cache
def omni(seed: int) -> tuple[Tensor, Tensor]:
    """The pictures, and what the views answered last."""
    _, y, a = problem(seed)
    model = Spherical(prior(seed), SIZE, VIEWS, FIELD)
    last: list[Tensor] = []
    loop = walking(model, a, Gaussian(0.0), Omni(), "omni", NFE, "karras")

    def keep(number: int, t: Any, x: Tensor, prediction: Prediction) -> None:
        last[:] = [prediction.x0]

    start = torch.zeros(PICTURES, 1, *SIZE, dtype=F64)
    return loop(Measured(model, a), start, y=y, dtype=F64, seed=seed, callback=keep), last[0]


@functools.cache
def alone(seed: int) -> tuple[Tensor, Tensor]:
    """Each view restored from its own half as large one, fused and brought to the measurement; and the views."""
    _, y, a = problem(seed)
    small = Tangents(VIEWS, PATCH // 2, FIELD)(y).transpose(1, 2).flatten(0, 1)
    half = fs.operators.Downsample(2)
    views = fs.restore(prior(seed), small, half, method="ddnm", nfe=NFE, seed=seed, dtype=F64, batch_size=len(small))
    views = views.unflatten(0, (PICTURES, VIEWS)).transpose(1, 2)
    whole = _tangents().fused(views)
    return whole + a.pinv(y - a(whole)), views


class Blocks(Denoiser):
    """The prior on the blocks of the grid, which knows of no sphere."""

    def __init__(self, model: GaussianMixture):
        super().__init__()
        self.model, self.process, self.shape = model, model.process, (1, *SIZE)

    def forward(self, x: Tensor, t: Tensor, **condition: Any) -> Prediction:
        parts = x.unfold(2, PATCH, PATCH).unfold(3, PATCH, PATCH)
        rows, columns = parts.shape[2:4]
        times = t.repeat_interleave(rows * columns) if t.ndim else t
        x0 = self.model(parts.reshape(-1, 1, PATCH, PATCH), times).x0.reshape(len(x), 1, rows, columns, PATCH, PATCH)
        return Prediction(x0.transpose(3, 4).reshape(x.shape), "x0", x, t, self.process)


@functools.cache
def grid(seed: int) -> Tensor:
    _, y, a = problem(seed)
    found: Tensor = fs.restore(Blocks(prior(seed)), y, a, method="ddnm", nfe=NFE, seed=seed, dtype=F64)
    return found


@functools.cache
def _tangents() -> Tangents:
    return Tangents(VIEWS, PATCH, FIELD).fit((1, *SIZE))


@functools.cache
def _area() -> Tensor:
    """Of the pixels of each row `(H, 1)`, their mean 1."""
    height = SIZE[0]
    area = (math.pi * (0.5 - (torch.arange(height, dtype=F64) + 0.5) / height)).cos()[:, None]
    return area / area.mean()


def disagreement(views: Tensor) -> float:
    """The deviation of what the views say of a pixel, over the sphere's area."""
    mean = _tangents().fused(views)
    variance = (_tangents().fused(views**2) - mean**2).clamp_min(0)
    return float((variance * _area()).mean().sqrt())


def weighted(x: Tensor, truth: Tensor) -> float:
    """PSNR with each pixel's error weighted by its area (WS-PSNR), in dB."""
    return 10 * math.log10(2**2 / float(((x - truth).square() * _area()).mean()))


def jumps(x: Tensor, truth: Tensor) -> float:
    """The error of the steps across the edges of the grid's blocks, the meridian of 180 degrees among them."""
    left, edges = x - truth, range(0, SIZE[1], PATCH)
    across = [(left[..., edge] - left[..., edge - 1]).square().mean() for edge in edges]
    down = [(left[..., edge, :] - left[..., edge - 1, :]).square().mean() for edge in range(PATCH, SIZE[0], PATCH)]
    return float(torch.stack(across + down).mean().sqrt())


def agreed(seed: int) -> tuple[float, float]:
    return disagreement(omni(seed)[1]), disagreement(alone(seed)[1])


def agreed_beyond(seed: int) -> tuple[float, float]:
    """The same of what views say less the truth of them: a pixel holds many of a view's, which need not be equal."""
    turn, rise = _tangents().directions()
    views = pattern(_unit(turn, rise).expand(PICTURES, -1, -1, -1, -1), torch.Generator().manual_seed(seed))[:, None]
    return disagreement(omni(seed)[1] - views), disagreement(alone(seed)[1] - views)


def nearer(seed: int) -> tuple[float, float]:
    truth = problem(seed)[0]
    return weighted(omni(seed)[0], truth), weighted(alone(seed)[0], truth)


def seamless(seed: int) -> tuple[float, float]:
    truth = problem(seed)[0]
    return jumps(omni(seed)[0], truth), jumps(grid(seed), truth)


def nearer_than_grid(seed: int) -> tuple[float, float]:
    truth = problem(seed)[0]
    return weighted(omni(seed)[0], truth), weighted(grid(seed), truth)


@experiment
def fused(seed: int) -> Outcome:
    flat = GaussianMixture(torch.ones(1), torch.full((1, 1, PATCH, PATCH), 0.7, dtype=F64), 0.0, VP())
    model = Spherical(flat, SIZE, VIEWS, FIELD)
    x = torch.randn(2, 1, *SIZE, generator=torch.Generator().manual_seed(seed), dtype=F64)
    worst = float((model(x, torch.tensor(0.5)).x0 - 0.7).abs().max())
    return tolerance(worst, 1e-12, f"{VIEWS} views of {FIELD:g} degrees, all of one grey")


ABOUT = f"{PICTURES} patterns, {SIZE[0]} x {SIZE[1]} from half of that, {NFE} evaluations"
WS = "PSNR by area, dB"


def claim(sentence: str, run: Any, against: str, unit: str, better: str = "low") -> Claim:
    return slow("omni", sentence, over_seeds(run, against, f"{ABOUT}, {VIEWS} views", better, unit))


CLAIMS = (
    claim("views agree where they overlap", agreed, "view by view (ddnm)", "deviation among views"),
    claim("errors of the views agree where they overlap", agreed_beyond, "view by view (ddnm)",
          "deviation among views of their errors"),
    claim("is nearer to the truth than view by view", nearer, "view by view (ddnm)", WS, "high"),
    claim("steps across the blocks' edges are right", seamless, "ddnm on blocks of the grid", "error of the steps"),
    claim("is nearer to the truth than blocks of the grid", nearer_than_grid, "ddnm on blocks of the grid", WS, "high"),
    Claim("spherical", "what views agree on stays", fused()),
)  # fmt: skip
