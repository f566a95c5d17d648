"""Claims of operators that are not linear, and of the laws of noise."""

from __future__ import annotations

import io

import numpy as np
import torch
from scipy import stats
from torch import Tensor

from claims.common import F64, Claim, Outcome, compared, experiment, tolerance
from fewstep.core.noise import Noise
from fewstep.data.digits import load
from fewstep.operators.compose import Chained
from fewstep.operators.jpeg import Jpeg
from fewstep.operators.noise import Gaussian, Poisson, PoissonGaussian
from fewstep.operators.nonlinear import Clip, Gamma, Magnitude, Nonlinear
from fewstep.operators.operator import Operator
from fewstep.operators.sensing import Sensing

SHAPE = (1, 6, 7)
DRAWS = 20_000


def normal(seed: int, *shape: int) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=F64)


@experiment
def _slope(seed: int, operator: Operator) -> Outcome:
    """Its Jacobian along a way beside central differences."""
    x, way, step = normal(seed, 4, *SHAPE), normal(seed + 1, 4, *SHAPE), 1e-6
    found = torch.einsum("bmd,bd->bm", operator.jacobian(x), way.flatten(1))
    wanted = (operator(x + step * way) - operator(x - step * way)).flatten(1) / (2 * step)
    worst = float((found - wanted).abs().max() / wanted.abs().max())
    return tolerance(worst, 1e-5, f"{operator} on random pictures of {SHAPE}", "relative error")


def _retrieved(seed: int) -> Outcome:
    """How far the magnitudes of sign flips, mirror images and moves of a picture are from its own."""
    x, operator = normal(seed, 4, 1, 6, 6), Magnitude(2)
    others = (-x, x.flip(2, 3))
    worst = max(float((operator(one) - operator(x)).abs().max()) for one in others)
    return tolerance(worst, 1e-10, "signs and mirror images of 6x6 pictures, oversampled twice")


def _pillow(seed: int) -> Outcome:
    """Mean distance from Pillow's files in grey levels, ours and that of the picture itself."""
    from PIL import Image

    pictures = load("validation")[0][:8]
    wide = pictures.repeat_interleave(3, 2).repeat_interleave(3, 3)
    values = ((wide + 1) * 127.5).round().to(torch.uint8)
    made = (Jpeg(30)(wide.double()) + 1) * 127.5
    ours = theirs = 0.0
    for value, own in zip(values, made, strict=True):
        file = io.BytesIO()
        Image.fromarray(value[0].numpy()).save(file, "JPEG", quality=30)
        wanted = torch.from_numpy(np.asarray(Image.open(file)).astype(float))
        ours += float((own[0] - wanted).abs().mean()) / len(values)
        theirs += float((value[0].double() - wanted).abs().mean()) / len(values)
    return compared((ours, theirs), "the picture itself", "8 digits of 24x24 at quality 30", unit="grey levels off")


def _normal_law(seed: int) -> Outcome:
    z = Gaussian(0.3).draw(torch.zeros(DRAWS, 1, dtype=F64), Noise(seed))
    figure = float(stats.kstest(z.flatten().numpy() / 0.3, "norm").statistic)
    return tolerance(figure, 2 / DRAWS**0.5, f"{DRAWS} draws of deviation 0.3", "largest distance of distributions")


def _counted(seed: int) -> Outcome:
    """The distance of distributions from Poisson's, of counts and of a Gaussian of the same variance, rounded."""
    mean = 3.0
    k = Poisson(mean).draw(torch.ones(DRAWS, 1, dtype=F64), Noise(seed)) * mean
    rough = (mean + mean**0.5 * Noise(seed).normal(0, (DRAWS, 1), dtype=F64)).round()
    grid = np.arange(-5, 30)
    exact = stats.poisson.cdf(grid, mean)
    figures = [
        max(abs((one.numpy() <= v + 1e-6).mean() - e) for v, e in zip(grid, exact, strict=True)) for one in (k, rough)
    ]
    return compared(figures, "a rounded Gaussian", f"{DRAWS} draws of mean 3", unit="largest distance of distributions")


def _whitened(seed: int) -> Outcome:
    """How far the variance of residuals over their deviation is from 1, at the worst brightness."""
    law = PoissonGaussian(0.05, 0.05)
    clean = torch.linspace(0.05, 1, 5, dtype=F64).expand(DRAWS, 5)
    residual = law.draw(clean, Noise(seed)) - clean
    figures = [float((one.var(0) - 1).abs().max()) for one in (law.whiten(residual, clean), residual / residual.std())]
    return compared(figures, "one deviation for all", f"brightness 0.05 to 1, {DRAWS} draws", unit="variance off 1")


CLAIMS = (
    Claim("chained", "its Jacobian is that of one after another", _slope(
        Chained(Nonlinear(torch.tanh), Sensing(9, "gaussian")))),
    Claim("magnitude", "signs and mirror images have the same magnitudes", _retrieved),
    Claim("clip", "its Jacobian is that of what is cut off", _slope(Clip(-0.3, 0.4))),
    Claim("gamma", "its Jacobian is that of the curve", _slope(Gamma(2.2, -6.0, 6.0))),
    Claim("nonlinear", "the Jacobian of a function is found", _slope(Nonlinear(lambda x: x.sin() * x))),
    Claim("jpeg", "leaves what Pillow's files leave", _pillow),
    Claim("gaussian", "draws are normal", _normal_law),
    Claim("poisson", "counts have Poisson's law, as rounded Gaussians do not", _counted),
    Claim("poisson-gaussian", "residuals are whitened at every brightness", _whitened),
)  # fmt: skip
