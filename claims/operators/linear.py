"""Claims of linear operators: what they measure against other libraries, their adjoints, and their pseudo-inverses."""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np
import torch
from scipy import ndimage
from torch import Tensor
from torch.nn import functional as F

from claims.common import F64, Claim, Outcome, compared, experiment, tolerance
from fewstep.operators.blur import Blur
from fewstep.operators.checks import check_operator
from fewstep.operators.colour import Grey
from fewstep.operators.compose import Added, Composed, Scaled, Stack
from fewstep.operators.downsample import Downsample
from fewstep.operators.fourier import Fourier
from fewstep.operators.linear import Linear
from fewstep.operators.mask import Identity, Inpaint
from fewstep.operators.matrix import Matrix
from fewstep.operators.operator import LinearOperator
from fewstep.operators.projections import Projections
from fewstep.operators.sensing import Sensing
from fewstep.operators.sphere import Tangents

SHAPE = (3, 8, 12)
EXACT = 1e-10


def normal(seed: int, *shape: int) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=F64)


@experiment
def _same(seed: int, operator: LinearOperator, wanted: Callable[[Tensor], Tensor], of: str) -> Outcome:
    """An operator's answers beside another library's."""
    x = normal(seed, 4, *SHAPE)
    return tolerance(
        float((operator(x) - wanted(x)).abs().max()), EXACT, f"{operator} against {of}, pictures of {SHAPE}"
    )


@experiment
def _dense(seed: int, operator: LinearOperator, matrix: Callable[[], Tensor], of: str) -> Outcome:
    """A composition's products, adjoint and pseudo-inverse beside dense algebra of its parts' matrices."""
    x = normal(seed, 4, *SHAPE)
    y, a = operator(x).flatten(1), matrix()
    noisy = y + normal(seed + 1, *y.shape)
    shaped = noisy.reshape(-1, *operator.out)
    worst = max(
        float((y - x.flatten(1) @ a.T).abs().max()),
        float((operator.adjoint(shaped).flatten(1) - noisy @ a).abs().max()),
        float((operator.pinv(shaped).flatten(1) - noisy @ torch.linalg.pinv(a, rtol=1e-6).T).abs().max()),
    )
    return tolerance(worst, 1e-8, f"{of}: product, adjoint and pseudo-inverse, pictures of {SHAPE}")


def _matrix(operator: LinearOperator, shape: tuple[int, ...] = SHAPE) -> Tensor:
    return operator.fit(shape).matrix()


def _scipy(x: Tensor) -> Tensor:
    return torch.from_numpy(ndimage.gaussian_filter(x.numpy(), (0, 0, 1, 1), mode="reflect", radius=(0, 0, 4, 4)))


def _numpy(x: Tensor) -> Tensor:
    z = np.fft.fftshift(np.fft.fft2(x[:, 0].numpy(), norm="ortho"), axes=(-2, -1))
    return torch.from_numpy(np.stack((z.real, z.imag), 1))


def _frequencies(seed: int) -> Outcome:
    operator, x = Fourier(torch.ones(SHAPE[1:])), normal(seed, 4, 1, *SHAPE[1:])
    return tolerance(float((operator(x) - _numpy(x)).abs().max()), EXACT, "all frequencies against NumPy's transform")


def _zeros(seed: int) -> Outcome:
    """A blur with exact zeros, and noise: by the pseudo-inverse and by division in the Fourier domain."""
    kernel = torch.tensor([1.0, 2.0, 1.0])
    blur, x = Blur(kernel).fit((16,)), normal(seed, 64, 16)
    y = blur.measure(x, 0.01, seed)
    transform = torch.fft.fft(torch.roll(F.pad(kernel.double() / 4, (0, 13)), -1))
    divided = torch.fft.ifft(torch.fft.fft(y) / (transform + 1e-9)).real
    figures = [float((made - x).norm() / x.norm()) for made in (blur.pinv(y), divided)]
    return compared(figures, "division by the transform", "16 numbers, noise 0.01, 64 samples", unit="relative error")


def _aliasing(seed: int) -> Outcome:
    """How much of waves too fine for the smaller picture is left in it."""
    waves = torch.cos(0.8 * math.pi * torch.arange(64, dtype=F64) + seed)[None].expand(1, 64).reshape(1, 1, 64)
    figures = [float(Downsample(2, name)(waves)[..., 4:-4].std()) for name in ("bicubic", "stride")]
    return compared(
        figures, "every second pixel", "a wave of 0.8 of the finest frequency, to half the size", unit="deviation"
    )


def _grey(seed: int) -> Outcome:
    operator, x = Grey(), normal(seed, 4, *SHAPE)
    grey = operator(x)
    figures = [float((one - x).norm() / x.norm()) for one in (operator.pinv(grey), grey.expand_as(x))]
    return compared(figures, "the grey in every channel", f"random pictures of {SHAPE}", unit="relative error")


def _unseen(seed: int) -> Outcome:
    operator, x = Inpaint("random", share=0.3, seed=seed), normal(seed, 4, *SHAPE)
    y = operator.measure(x)
    worst = float(((operator.pinv(y) - x) * operator.mask).abs().max() + (y * (1 - operator.mask)).abs().max())
    return tolerance(worst, EXACT, f"a random 30 % seen, pictures of {SHAPE}, without noise")


def _itself(seed: int) -> Outcome:
    x, operator = normal(seed, 4, *SHAPE), Identity()
    y = operator.measure(x)
    return tolerance(float((operator.pinv(y) - x).abs().max()), EXACT, "measured without noise and back")


def _transposed(seed: int) -> Outcome:
    a, y = normal(seed, 9, 24), normal(seed + 1, 4, 9)
    made = Linear(lambda x: x @ a.T, (24,)).adjoint(y)
    return tolerance(
        float((made - y @ a).abs().max()), EXACT, "the adjoint by differentiation of a random matrix, 9 x 24"
    )


def _views(seed: int) -> Outcome:
    """The error of a picture's sum and middle in 30 views, and of views that round each pixel to one detector."""
    x = normal(seed, 4, 1, 12, 12).abs()
    y = Projections(30)(x)[:, 0]
    turns = torch.arange(30, dtype=F64) * math.pi / 30
    across = torch.arange(12, dtype=F64) - 5.5
    place = across * turns.cos()[:, None, None] + across[:, None] * turns.sin()[:, None, None]
    wanted = (x[:, 0, None] * place).sum((2, 3))
    detectors = torch.arange(y.shape[-1], dtype=F64) - (y.shape[-1] - 1) / 2
    rounded = (x[:, 0, None] * place.round()).sum((2, 3))
    figures = [float((one - wanted).abs().max()) for one in ((y * detectors).sum(-1), rounded)]
    return compared(
        figures, "each pixel to its nearest detector", "30 views of 12x12 pictures", unit="first moment off"
    )


def _condition(seed: int) -> Outcome:
    figures = []
    for rows in ("orthonormal", "gaussian"):
        values = torch.linalg.svdvals(Sensing(32, rows, seed=seed).fit((64,)).matrix())
        figures.append(float(values[0] / values[-1]))
    return compared(figures, "Gaussian entries", "32 products of 64 numbers", unit="condition")


def _fast(seed: int) -> Outcome:
    a = Sensing(0.4, "hadamard", seed=seed).fit(SHAPE).matrix()
    return tolerance(
        float((a @ a.T - torch.eye(len(a), dtype=F64)).abs().max()), EXACT, f"rows of a fast basis, {SHAPE}"
    )


def _overlaps(seed: int) -> Outcome:
    views = Tangents(12, size=12)
    x = normal(seed, 4, 1, 1, 1).expand(4, 1, 10, 20)
    return tolerance(
        float((views.fused(views(x)) - x).abs().max()), EXACT, "constants in 12 views of 90 degrees and back"
    )


def _faults(seed: int) -> Outcome:
    """Faults planted in an operator of 12 numbers that a check misses, and sound operators that it blames."""
    a = normal(seed, 12, 12).float()
    wrong = [
        (lambda x: x @ a.T, lambda y: y @ a.T),
        (lambda x: x @ a.T, lambda y: 1.01 * y @ a),
        (lambda x: x @ a.T + 0.1, None),
        (lambda x: x.abs(), None),
        (lambda x: x - x.mean(0), None),
        (lambda x: x * torch.rand(()), None),
        (lambda x: x / 0, None),
    ]
    right = [(lambda x: x @ a.T, lambda y: y @ a), (lambda x: x.flip(-1), None)]
    missed = sum(check_operator(way, (12,), adjoint=back, seed=seed).ok for way, back in wrong)
    blamed = sum(not check_operator(way, (12,), adjoint=back, seed=seed).ok for way, back in right)
    about = f"{len(wrong)} faulty operators and {len(right)} sound ones of 12 numbers"
    return tolerance(missed + blamed, 0.5, about, "verdicts that are wrong")


def _pseudo(seed: int) -> Outcome:
    a, y = normal(seed, 20, 24), normal(seed + 1, 4, 20)
    a[10:] = a[:10]  # of rank 10
    off = Matrix(a).fit((24,)).pinv(y) - y @ torch.linalg.pinv(a, rtol=1e-6).T
    return tolerance(float(off.abs().max()), 1e-9, "a 20 x 24 matrix of rank 10 against torch.linalg.pinv")


BLUR = Blur("gaussian", border="reflect")
HALF, MASK = Downsample(2), Inpaint("stripes")
CLAIMS = (
    Claim("blur", "a Gaussian with reflecting borders is SciPy's", _same(BLUR, _scipy, "SciPy")),
    Claim("blur", "noise is not blown up where a kernel has exact zeros", _zeros),
    Claim("downsample", "bicubic pixels are torch's antialiased ones", _same(
        Downsample(2, "bicubic"),
        lambda x: F.interpolate(x, (4, 6), mode="bicubic", antialias=True), "torch's interpolate")),
    Claim("downsample", "a bicubic reduction aliases less than a stride", _aliasing),
    Claim("grey", "its pseudo-inverse is nearer to the colours than grey in every channel", _grey),
    Claim("composed", "is the product of the matrices", _dense(
        Composed(HALF, BLUR), lambda: _matrix(HALF) @ _matrix(BLUR), "half the size after a blur")),
    Claim("scaled", "is the multiple of the matrix", _dense(
        Scaled(MASK, -2.5), lambda: -2.5 * _matrix(MASK), "-2.5 times a mask")),
    Claim("added", "is the sum of the matrices", _dense(
        Added(BLUR, MASK), lambda: _matrix(BLUR) + _matrix(MASK), "a blur and a mask")),
    Claim("stack", "is the matrices one above the other", _dense(
        Stack(HALF, MASK), lambda: torch.cat((_matrix(HALF), _matrix(MASK))), "half the size and a mask")),
    Claim("fourier", "its frequencies are NumPy's", _frequencies),
    Claim("linear", "the adjoint that differentiation finds is the transposed matrix", _transposed),
    Claim("inpaint", "what is seen comes back exact, and the rest of a measurement is 0", _unseen),
    Claim("identity", "gives a sample back", _itself),
    Claim("matrix", "its pseudo-inverse is exact where the rank is not full", _pseudo),
    Claim("projections", "views keep a picture's middle, as rounding to detectors does not", _views),
    Claim("sensing", "orthonormal rows have a better condition than Gaussian entries", _condition),
    Claim("sensing", "rows of the fast basis are orthonormal for any number of columns", _fast),
    Claim("tangents", "overlaps of a constant are fused exactly", _overlaps),
    Claim("check-operator", "finds planted faults, and blames no sound operator", _faults),
)  # fmt: skip
