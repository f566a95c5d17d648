"""The contract of every operator; a card of the kind enters with a row that says how it is made.

Linear ones are held to dense algebra in float64: the adjoint, the pseudo-inverse, and singular values and vectors.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
from torch import Tensor

from fewstep.core.config import built, config
from fewstep.core.methods import methods
from fewstep.operators.blur import Blur
from fewstep.operators.colour import Grey
from fewstep.operators.compose import Added, Chained, Composed, Scaled, Stack
from fewstep.operators.downsample import Downsample
from fewstep.operators.fourier import Fourier
from fewstep.operators.jpeg import Jpeg
from fewstep.operators.linear import Linear
from fewstep.operators.mask import Identity, Inpaint
from fewstep.operators.matrix import Matrix
from fewstep.operators.nonlinear import Clip, Gamma, Magnitude, Nonlinear
from fewstep.operators.operator import Operator
from fewstep.operators.projections import Projections
from fewstep.operators.sensing import Sensing
from fewstep.operators.spec import read_operator
from fewstep.operators.sphere import Tangents

F64 = torch.float64
Shape = tuple[int, ...]
CARDS = {card.name: card for card in methods("operator")}
SHAPES: tuple[Shape, ...] = ((1, 5, 7), (2, 3, 8), (24,))
EVEN: tuple[Shape, ...] = ((1, 4, 6), (2, 2, 8), (24,))


def normal(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=F64)


def size(shape: Shape) -> int:
    return int(torch.Size(shape).numel())


Make = Callable[[Shape], Operator]
# How each is made, for samples of a shape, and the shapes where these are not the usual ones.
EXAMPLES: dict[str, dict[str, Make | tuple[Make, tuple[Shape, ...]]]] = {
    "identity": {"": lambda s: Identity()},
    "inpaint": {
        "grey": lambda s: Inpaint((normal(*s, seed=1) > 0) * torch.linspace(0.2, 1, s[-1])),
        "box": lambda s: Inpaint("box"),
        "half": lambda s: Inpaint("half", share=0.3),
        "random": lambda s: Inpaint("random", share=0.4, seed=3),
        "stripes": lambda s: Inpaint("stripes", share=0.34),
        "bayer": (lambda s: Inpaint("bayer"), ((3, 4, 5),)),
    },
    "matrix": {
        "wide": lambda s: Matrix(normal(4, size(s), seed=2)),
        "tall": lambda s: Matrix(normal(size(s) + 3, 4, seed=3) @ normal(4, size(s), seed=4)),
    },
    "downsample": {
        "average": (lambda s: Downsample(2), EVEN),
        "bicubic": (lambda s: Downsample(2, "bicubic"), EVEN),
        "stride": (lambda s: Downsample(2, "stride"), EVEN),
    },
    "blur": {
        "gaussian": lambda s: Blur("gaussian", width=0.7),
        "box": lambda s: Blur("box", width=2.5, border="reflect"),
        "disk": lambda s: Blur("disk", width=3.5),
        "reflecting": lambda s: Blur("disk", border="reflect"),
        "motion": (lambda s: Blur("motion", length=4, angle=30), SHAPES[:2]),
        "crooked": (lambda s: Blur("motion", length=4, angle=30.5, border="reflect"), SHAPES[:2]),
        "given": lambda s: Blur(torch.tensor([1.0, 2.0, 1.0])),
    },
    "grey": {
        "luma": (lambda s: Grey(), ((3, 4, 5), (2, 3, 8))),
        "weights": (lambda s: Grey([0.5, -1.0]), ((2, 3, 8), (2, 6))),
    },
    "linear": {
        "function": lambda s: Linear(torch.diff, s),
        "adjoint": lambda s: Linear(lambda x: 2 * x.flip(-1), s, lambda y: 2 * y.flip(-1)),
    },
    "sensing": {
        "orthonormal": lambda s: Sensing(0.4, seed=1),
        "hadamard": lambda s: Sensing(9, "hadamard"),
        "gaussian": lambda s: Sensing(5, "gaussian"),
        "blocks": (lambda s: Sensing(2, block=2), EVEN),
        "quick": (lambda s: Sensing(0.5, "hadamard", block=2), EVEN),
    },
    "fourier": {
        "lines": lambda s: Fourier("cartesian", acceleration=2),
        "points": lambda s: Fourier("random", seed=1),
        "spokes": (lambda s: Fourier("radial", acceleration=3), SHAPES[:2]),
        "weights": lambda s: Fourier(torch.linspace(0, 1, size(s[1:] or s)).reshape(s[1:] or s)),
        "coils": (lambda s: Fourier("cartesian", acceleration=2, coils=3), SHAPES[:2]),
        "maps": (lambda s: Fourier("random", coils=normal(2, *s[1:], 2)), SHAPES[:2]),
    },
    "projections": {
        "angles": (lambda s: Projections(4), SHAPES[:2]),
        "given": (lambda s: Projections([10, 33.3]), SHAPES[:2]),
    },
    "tangents": {"": (lambda s: Tangents(3, size=3, field=80), ((1, 5, 7), (2, 4, 8)))},
    "magnitude": {
        "padded": lambda s: Magnitude(2),
        "coils": lambda s: Magnitude(Fourier()),
        "any": lambda s: Magnitude(Blur()),
    },
    "clip": {"": lambda s: Clip(-0.3, 0.4)},
    "gamma": {"": lambda s: Gamma(), "root": lambda s: Gamma(0.5, -2.0, 2.0)},
    "nonlinear": {"": lambda s: Nonlinear(torch.tanh)},
    "jpeg": {
        "grey": (lambda s: Jpeg(30), ((1, 5, 7), (1, 8, 17))),
        "colours": (lambda s: Jpeg(70), ((3, 9, 8),)),
        "whole": (lambda s: Jpeg(90, halved=False), ((3, 8, 9),)),
    },
    "composed": {
        "axes": (lambda s: Downsample(2) @ Blur("gaussian"), EVEN),
        "any": lambda s: Composed(Sensing(3, "gaussian"), Inpaint("half"), Blur("disk")),
    },
    "chained": {"": lambda s: Chained(Inpaint("half"), Sensing(3, "gaussian"))},
    "scaled": {"": lambda s: 0.5 * Blur("box"), "turned": lambda s: Scaled(Blur("disk"), -2.0)},
    "added": {"": lambda s: Added(Blur("gaussian"), Scaled(Identity(), 0.25))},
    "stack": {"": (lambda s: Stack(Downsample(2), Inpaint("half", share=0.5)), EVEN)},
}


def cases() -> Iterator[tuple[str, Make, tuple[Shape, ...]]]:
    for name, kinds in EXAMPLES.items():
        for kind, given in kinds.items():
            make, shapes = given if isinstance(given, tuple) else (given, SHAPES)
            yield "-".join(filter(None, (name, kind))), make, shapes


CASES = {name: (make, shapes) for name, make, shapes in cases()}
LINEAR = [name for name, (make, shapes) in CASES.items() if make(shapes[0]).linear]


def fitted(name: str) -> Iterator[Any]:
    make, shapes = CASES[name]
    for shape in shapes:
        yield make(shape).fit(shape)


def samples(operator: Operator, n: int = 3, seed: int = 0) -> Tensor:
    return normal(n, *(operator.shape or ()), seed=seed)


def measurements(operator: Operator, n: int = 3) -> Tensor:
    return normal(n, *operator.out, seed=1)


def test_every_operator_has_a_row():
    assert set(EXAMPLES) == set(CARDS)
    for name, kinds in EXAMPLES.items():
        for kind in kinds:
            make, shapes = CASES["-".join(filter(None, (name, kind)))]
            assert type(make(shapes[0])) is CARDS[name].load(), (name, kind)


@pytest.mark.parametrize("name", CASES)
def test_each_sample_is_measured_alone(name: str):
    for operator in fitted(name):
        x = samples(operator)
        y = operator(x)
        assert tuple(y.shape[1:]) == operator.out == operator.measured() and len(y) == 3
        assert torch.allclose(operator(x[1:2])[0], y[1], rtol=1e-10, atol=1e-12)
        for row, alone in zip(operator.measure(x, 0.1, seed=5), range(3), strict=True):
            own = operator.measure(x[alone : alone + 1], 0.1, seed=5, first=alone)[0]
            assert torch.allclose(own, row, rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize("name", CASES)
def test_it_keeps_the_dtype(name: str):
    for operator in fitted(name):
        for dtype in (torch.float32, F64):
            x, y = samples(operator).to(dtype), measurements(operator).to(dtype)
            made = [operator(x), operator.measure(x, 0.1)]
            if operator.linear:
                made += [operator.adjoint(y), operator.pinv(y), operator.project(x), operator.null(x)]
            assert {one.dtype for one in made} == {dtype}
        assert torch.allclose(operator(samples(operator).float()).double(), operator(samples(operator)), atol=2e-5)


@pytest.mark.parametrize("name", LINEAR)
def test_its_adjoint(name: str):
    for operator in fitted(name):
        x, y = samples(operator).requires_grad_(), measurements(operator)
        back = operator.adjoint(y)
        assert back.shape == x.shape
        made = operator(x)
        assert torch.allclose((made * y).flatten(1).sum(1), (x * back).flatten(1).sum(1), rtol=1e-9, atol=1e-10)
        (gradient,) = torch.autograd.grad(made, x, y)
        assert torch.allclose(gradient, back, rtol=1e-9, atol=1e-10)
        with torch.inference_mode():
            assert torch.equal(operator.adjoint(y), back)
        (again,) = torch.autograd.grad(operator.adjoint(y.requires_grad_()), y, x.detach())
        assert torch.allclose(again, made.detach(), rtol=1e-9, atol=1e-10)


@pytest.mark.parametrize("name", sorted(set(CASES) - set(LINEAR)))
def test_its_jacobian(name: str):
    """Against differences; JPEG's, which leaves out the rounding, has a test of its own."""
    for operator in fitted(name):
        x, step = samples(operator, 2), 1e-6
        along = normal(*x.shape, seed=7)
        y = measurements(operator, 2)
        back = operator.pulled(x, y)
        assert back.shape == x.shape and not back.isnan().any()
        if name.startswith("jpeg"):
            continue
        jacobian = operator.jacobian(x)
        assert torch.allclose(back.flatten(1), torch.einsum("bmd,bm->bd", jacobian, y.flatten(1)))
        change = (operator(x + step * along) - operator(x - step * along)).flatten(1) / (2 * step)
        assert torch.allclose(torch.einsum("bmd,bd->bm", jacobian, along.flatten(1)), change, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("name", LINEAR)
def test_its_matrix_and_pseudo_inverse(name: str):
    for operator in fitted(name):
        x, y, matrix = samples(operator), measurements(operator), operator.matrix()
        assert torch.allclose(operator(x).flatten(1), x.flatten(1) @ matrix.T, atol=1e-10)
        wanted = y.flatten(1) @ torch.linalg.pinv(matrix, rtol=1e-6).T
        assert torch.allclose(operator.pinv(y).flatten(1), wanted, rtol=1e-7, atol=1e-8)
        seen = operator.project(x)
        assert torch.allclose(operator(seen), operator(x), atol=1e-8)
        assert float(operator(operator.null(x)).abs().max()) < 1e-8


@pytest.mark.parametrize("name", LINEAR)
def test_its_spectrum(name: str):
    for operator in fitted(name):
        spectrum, x, y = operator.spectrum(), samples(operator), measurements(operator)
        d = x[0].numel()
        into = spectrum.into(torch.eye(d, dtype=F64).reshape(d, *operator.shape))
        assert torch.allclose(into.T @ into, torch.eye(d, dtype=F64), atol=1e-10)
        assert torch.allclose(spectrum.back(spectrum.into(x)), x, atol=1e-10)
        values = torch.zeros(d, dtype=F64)
        found = torch.linalg.svdvals(operator.matrix())
        values[: len(found)] = torch.where(found > 1e-6 * found[0], found, 0.0)[:d]
        assert torch.allclose(spectrum.values.sort(descending=True).values, values, atol=1e-9)
        image = operator(x)
        assert torch.allclose(spectrum.out(spectrum.values * spectrum.into(x)), image, atol=1e-9)
        assert torch.allclose(spectrum.of(image), spectrum.values * spectrum.into(x), atol=1e-9)
        assert torch.allclose(spectrum.of(y - spectrum.out(spectrum.of(y))), torch.zeros(3, d, dtype=F64), atol=1e-9)
        assert float(spectrum.of(y)[:, ~spectrum.seen()].abs().sum()) == 0


@pytest.mark.parametrize("name", CASES)
def test_it_comes_back_from_its_configuration(name: str):
    for operator in fitted(name):
        if name.startswith(("linear", "nonlinear")):
            with pytest.raises(ValueError, match="around a function cannot be saved"):
                config(operator)
            continue
        beside: dict[str, Any] = {}
        again = built(config(operator, beside), beside)
        x = samples(operator)
        assert type(again) is type(operator) and torch.equal(again(x), operator(x)) and str(again) == str(operator)


def arrays(value: Any) -> bool:
    """Whether a configuration holds what one word cannot say."""
    if isinstance(value, dict):
        return any(map(arrays, value.values())) or value.get("kind") == "tensor"
    return isinstance(value, list) and (any(map(arrays, value)) or any(isinstance(one, list) for one in value))


@pytest.mark.parametrize("name", CASES)
def test_what_it_is_called_makes_it_again(name: str):
    for operator in fitted(name):
        if name.startswith(("linear", "nonlinear")) or arrays(config(operator, {})):
            with pytest.raises(ValueError, match="of that shape|the operator|takes NAME"):
                read_operator(str(operator))(samples(operator))
            continue
        again = read_operator(str(operator))
        assert str(again) == str(operator)
        assert torch.allclose(again(samples(operator)), operator(samples(operator)), rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("name", CASES)
def test_another_shape_is_refused(name: str):
    (operator, *_) = fitted(name)
    wrong = torch.zeros(2, *(operator.shape or ()), 3)
    with pytest.raises(ValueError, match=r"samples of shape .* not "):
        operator(wrong)
    with pytest.raises(ValueError, match="of floats, got"):
        operator(wrong.int())
    if operator.linear:
        y = torch.zeros(2, *operator.out, 1)
        with pytest.raises(ValueError, match=r"y of shape .* is no measurement of .* makes .* of samples"):
            operator.adjoint(y)
