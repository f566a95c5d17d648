"""MBIR's ADMM against dense solutions, and slices that know nothing of each other."""

from __future__ import annotations

import pytest
import torch
from restoration.problems import normal

import fewstep as fs
from fewstep.denoisers.gaussian_mixture import GaussianMixture
from fewstep.processes.flow import Flow
from fewstep.processes.vp import VP
from fewstep.restoration.mbir import MBIR, Slices, across, across_back

F64 = torch.float64
DEPTH, SIDE = 4, 2
SHAPE = (DEPTH, SIDE, SIDE)
N = DEPTH * SIDE * SIDE


def pictures(process=None) -> GaussianMixture:
    means = normal(2, 1, SIDE, SIDE, seed=1)
    return GaussianMixture(torch.ones(2), means, 0.05, process or VP())


def operator(m: int = 20):
    return fs.operators.Matrix(normal(m, N, seed=2) / 4).fit(SHAPE)


def differences() -> torch.Tensor:
    eye = torch.eye(N, dtype=F64).reshape(N, *SHAPE)
    return across(eye).flatten(1).T


def test_differences_and_their_adjoint():
    x, d = normal(2, *SHAPE, seed=3), normal(2, DEPTH - 1, SIDE, SIDE, seed=4)
    assert torch.allclose((across(x) * d).sum(), (x * across_back(d)).sum())


@pytest.mark.parametrize("m", [20, 6])
def test_a_step_is_the_dense_solution(m):
    own, a, y = MBIR(rho=0.7, weight=0.1, iterations=1, inner=100), operator(m), normal(1, m, seed=5)
    z, u = normal(1, DEPTH - 1, SIDE, SIDE, seed=6), normal(1, DEPTH - 1, SIDE, SIDE, seed=7)
    start = normal(1, *SHAPE, seed=8)
    x, z_after, u_after = own.admm(a, start, y, z, u)
    d, matrix = differences(), a.matrix()
    left = matrix.T @ matrix + 0.7 * d.T @ d
    right = matrix.T @ y[0] + 0.7 * d.T @ (z - u).flatten()
    # Of the solutions, the one nearest to the start.
    wanted = start.flatten() + torch.linalg.pinv(left, rtol=1e-10, hermitian=True) @ (right - left @ start.flatten())
    assert torch.allclose(x.flatten(), wanted, atol=1e-6)
    moved = across(x) + u
    assert torch.allclose(z_after, torch.nn.functional.softshrink(moved, 0.1 / 0.7))
    assert torch.allclose(u_after, moved - z_after)


def test_many_steps_end_at_the_minimum():
    """The minimum of the whole, from the signs of the differences: a dense system."""
    weight, a, y = 0.3, operator(), normal(1, 20, seed=5)
    own = MBIR(rho=0.3, weight=weight, iterations=3000, inner=30)
    zero = torch.zeros(1, DEPTH - 1, SIDE, SIDE, dtype=F64)
    x, z, _ = own.admm(a, torch.zeros(1, *SHAPE, dtype=F64), y, zero, zero)
    d, matrix, signs = differences(), a.matrix(), z.flatten().sign()
    still = d[signs == 0]
    assert 0 < len(still) < len(d)
    kkt = torch.zeros(N + len(still), N + len(still), dtype=F64)
    kkt[:N, :N], kkt[:N, N:], kkt[N:, :N] = matrix.T @ matrix, still.T, still
    right = torch.cat([matrix.T @ y[0] - weight * d.T @ signs, torch.zeros(len(still), dtype=F64)])
    solution = torch.linalg.solve(kkt, right)
    assert torch.allclose(x.flatten(), solution[:N], atol=1e-6)
    assert float(solution[N:].abs().max()) <= weight + 1e-9  # it is the minimum


@pytest.mark.parametrize("process", [VP(), Flow()], ids=["vp", "flow"])
def test_slices_are_pictures_and_volumes_are_restored(process):
    model = Slices(pictures(process), DEPTH)
    x, t = normal(3, *SHAPE, seed=9), torch.tensor([0.2, 0.5, 0.7], dtype=F64)
    whole = model(x, t).x0
    for slice_ in range(DEPTH):
        alone = pictures(process)(x[:, slice_ : slice_ + 1], t).x0
        assert torch.allclose(whole[:, slice_ : slice_ + 1], alone)
    a = operator()
    y = a.measure(model(x, t).x0, noise=0.02)
    found = fs.restore(model, y, a, 0.02, method="mbir", n=2, nfe=12, dtype=F64)
    assert found.shape == (3, 2, *SHAPE) and bool(torch.isfinite(found).all())
    left = (a(found.flatten(0, 1)) - y.repeat_interleave(2, 0)).square().mean()
    assert float(left) < 0.1 * float(y.square().mean())
    single = fs.restore(model, y[:1], a, 0.02, method="mbir", n=2, nfe=12, dtype=F64)
    assert torch.allclose(single[0], found[0], atol=1e-8)


def test_bad_input_is_said():
    with pytest.raises(ValueError, match=r"slices are pictures \(1, H, W\)"):
        Slices(GaussianMixture(torch.ones(1), normal(1, 4), 1.0, VP()), 3)
    with pytest.raises(ValueError, match="weight must be at least 0"):
        MBIR(weight=-1.0)
