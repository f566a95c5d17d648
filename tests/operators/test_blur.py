"""Blurs against convolutions written out, their spectra, and their gradients in the kernel."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from scipy import ndimage
from torch import Tensor

from fewstep.operators.blur import Blur
from fewstep.operators.spectrum import Axes, Cyclic, Dense, Symmetric

MODE = {"cyclic": "wrap", "reflect": "reflect"}  # SciPy's names for them


def normal(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


@pytest.mark.parametrize("border", ["cyclic", "reflect"])
@pytest.mark.parametrize("shape", [(3, 5), (5, 3), (9, 11)])  # wider than the sample, too
def test_any_kernel_is_scipys_convolution(border: str, shape: tuple[int, int]):
    x, kernel = normal(2, 1, 5, 7), normal(*shape, seed=1).abs()
    y = Blur(kernel, border=border)(x)
    for row in range(2):
        wanted = ndimage.convolve(x[row, 0].numpy(), (kernel / kernel.sum()).numpy(), mode=MODE[border])
        assert np.allclose(y[row, 0].numpy(), wanted)


@pytest.mark.parametrize("border", ["cyclic", "reflect"])
def test_a_kernel_of_one_axis_goes_along_each(border: str):
    x = normal(1, 2, 6, 7)
    both = Blur("gaussian", width=0.8, border=border)(x)
    wanted = ndimage.gaussian_filter(x[0].numpy(), (0, 0.8, 0.8), mode=MODE[border], radius=(0, 4, 4))
    assert np.allclose(both[0].numpy(), wanted)
    flat = torch.ones(3, 3)
    assert torch.allclose(Blur("box", width=3, border=border)(x), Blur(flat, border=border)(x))
    assert torch.allclose(Blur("box", width=3, border=border)(x), Blur(torch.ones(3), border=border)(x))


def test_a_disk_and_a_line():
    dot = torch.zeros(1, 1, 41, 41, dtype=torch.float64)
    dot[..., 20, 20] = 1
    disk = Blur("disk", width=17)(dot)[0, 0]
    inner = torch.full((), 1 / (np.pi * 8.5**2), dtype=torch.float64)
    assert float(disk[20, 20]) == pytest.approx(float(inner), rel=5e-3)
    assert torch.allclose(disk, disk.T) and float(disk[20, 29]) < 1e-12
    line = Blur("motion", length=5)(dot)[0, 0]
    assert torch.allclose(line[20, 18:23], torch.full((5,), 0.2, dtype=torch.float64))
    tall = Blur("motion", length=5, angle=90)(dot)[0, 0]
    assert torch.allclose(tall, line.T)
    slanted = Blur("motion", length=7, angle=45)(dot)[0, 0]
    assert torch.allclose(slanted, slanted.T) and float(slanted.sum()) == pytest.approx(1)
    assert torch.allclose(Blur("motion", length=4, angle=180)(normal(1, 9)), Blur("motion", length=4)(normal(1, 9)))


def test_its_spectrum_is_the_cheapest_that_it_has():
    even = torch.tensor([[1.0, 2, 1], [2, 5, 2], [1, 2, 1]])
    made = {
        Axes: (Blur("gaussian"), Blur("box", border="reflect")),
        Cyclic: (Blur(even), Blur("motion", angle=30), Blur("disk")),
        Symmetric: (Blur(even, border="reflect"), Blur("disk", width=9, border="reflect")),
        Dense: (Blur("motion", angle=30, border="reflect"),),
    }
    for kind, blurs in made.items():
        for blur in blurs:
            blur.fit((2, 5, 6))
            found = blur.spectrum()
            assert isinstance(found, kind), blur
            wanted = torch.linalg.svdvals(blur.matrix())
            assert torch.allclose(found.values.sort(descending=True).values, wanted, atol=1e-10)


def test_exact_zeros_count_as_zeros():
    blur = Blur(torch.tensor([1.0, 2.0, 1.0])).fit((8,))
    spectrum = blur.spectrum()
    assert spectrum is not None and int((spectrum.values == 0).sum()) == 1
    alternating = torch.tensor([1.0, -1.0], dtype=torch.float64).repeat(4)[None]
    assert float(blur.project(alternating).abs().max()) < 1e-12


@pytest.mark.parametrize("border", ["cyclic", "reflect"])
@pytest.mark.parametrize("shape", [(3,), (3, 3)])
def test_it_is_differentiable_in_its_kernel(border: str, shape: tuple[int, ...]):
    x, kernel = normal(2, 1, 4, 5), normal(*shape, seed=2).abs()

    def loss(kernel: Tensor) -> Tensor:
        return Blur(kernel, border=border)(x)

    assert torch.autograd.gradcheck(loss, kernel.requires_grad_())
    blur = Blur(kernel, border=border)
    first, second = (torch.autograd.grad(blur(x).square().sum(), kernel)[0] for _ in range(2))
    assert torch.equal(first, second)  # nothing of the first graph is kept
    spectrum = blur.spectrum()
    assert spectrum is not None and not spectrum.values.requires_grad


def test_bad_input():
    with pytest.raises(ValueError, match=r"a kernel has odd sides.*got shape \(2, 3\): pad it"):
        Blur(torch.ones(2, 3))
    with pytest.raises(ValueError, match="weights must sum to something positive, got 0"):
        Blur(torch.tensor([1.0, 0.0, -1.0]))
    with pytest.raises(ValueError, match="did you mean 'gaussian'"):
        Blur("gausian")
    with pytest.raises(ValueError, match="did you mean 'cyclic'"):
        Blur(border="cyclical")
    with pytest.raises(ValueError, match="a gaussian blur has width, not length"):
        Blur("gaussian", length=3)
    with pytest.raises(ValueError, match="width belongs to named kernels, and this one is given"):
        Blur(torch.ones(3), width=2)
    with pytest.raises(ValueError, match="the width of a blur is a positive number of pixels, got -1"):
        Blur("box", width=-1)
    with pytest.raises(ValueError, match="the length of a motion is a whole number"):
        Blur("motion", length=2.5)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="along one axis a motion has no angle, got 30"):
        Blur("motion", angle=30)(torch.zeros(1, 8))
    with pytest.raises(ValueError, match=r"a kernel of shape \(3, 3\) does not fit samples of shape \(2, 4, 4, 4\)"):
        Blur(torch.ones(3, 3))(torch.zeros(1, 2, 4, 4, 4))
