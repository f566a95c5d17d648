"""Solutions against dense algebra in float64, in every form in which they are found."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from fewstep.operators.covariance import Applied, Cosine, Covariance, Elements, Full, Same
from fewstep.operators.krylov import conjugate_gradients, gcr
from fewstep.operators.mask import Inpaint
from fewstep.operators.matrix import Matrix
from fewstep.operators.operator import LinearOperator
from fewstep.operators.solve import Inverse, prox

SHAPE = (2, 3, 4)
D = 24


def normal(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def operators() -> dict[str, LinearOperator]:
    few = normal(7, D, seed=1)
    twice = torch.cat((few, few[:2]))  # of rank 7
    mask = (normal(*SHAPE, seed=2) > 0).double()
    return {"wide": Matrix(few), "twice": Matrix(twice), "tall": Matrix(normal(30, D, seed=3)), "mask": Inpaint(mask)}


def covariances() -> dict[str, Covariance]:
    root = normal(D, D, seed=4) + 6 * torch.eye(D, dtype=torch.float64)
    each = normal(*SHAPE, seed=5).exp()
    return {"number": Same(0.7), "elements": Elements(each), "cosine": Cosine(each), "full": Full(root @ root.T / D)}


@pytest.mark.parametrize("name", ["wide", "twice", "tall", "mask"])
@pytest.mark.parametrize("kind", ["number", "elements", "cosine", "full"])
@pytest.mark.parametrize("noise", [0.0, 0.3])
def test_the_inverse_is_that_of_dense_algebra(name: str, kind: str, noise: float):
    operator, c = operators()[name].fit(SHAPE), covariances()[kind]
    a = operator.matrix()
    whole = a @ c.matrix(SHAPE)[0] @ a.T + noise**2 * torch.eye(len(a), dtype=torch.float64)
    r = operator(normal(5, *SHAPE, seed=6))
    u = Inverse(operator, c, Same(noise**2))(r)
    wanted = (torch.linalg.pinv(whole, hermitian=True) @ r.flatten(1).T).T
    assert torch.allclose(u.flatten(1), wanted, rtol=1e-8, atol=1e-8)


def test_every_sample_may_have_its_own_covariance():
    operator = operators()["wide"].fit(SHAPE)
    variances = torch.tensor([0.2, 1.0, 3.0], dtype=torch.float64)
    r = normal(3, 7, seed=7)
    for many, one in ((Same(variances), Same), (covariances()["full"].scaled(variances), covariances()["full"].scaled)):
        together = Inverse(operator, many, Same(0.01))(r)
        for row, variance in enumerate(variances):
            assert torch.allclose(together[row], Inverse(operator, one(variance), Same(0.01))(r[row : row + 1])[0])


def test_conjugate_gradients_reach_the_same(monkeypatch: pytest.MonkeyPatch):
    operator, c = operators()["wide"].fit(SHAPE), covariances()["cosine"]
    r = normal(4, 7, seed=8)
    direct = Inverse(operator, c, Same(0.04))(r)
    monkeypatch.setattr("fewstep.operators.solve.DIRECT", 0)
    inverse = Inverse(operator, c, Same(0.04), tolerance=1e-10)
    assert torch.allclose(inverse(r), direct, rtol=1e-7, atol=1e-9)
    assert inverse.solved is not None and float(inverse.solved.residual.max()) < 1e-9


def test_a_step_belongs_to_its_sample_and_a_short_run_says_what_is_left():
    matrix = torch.diag(torch.tensor([1.0, 10.0, 100.0], dtype=torch.float64))

    def apply(u: Tensor) -> Tensor:
        return u @ matrix

    r = normal(4, 3, seed=9) * torch.tensor([1.0, 1e3, 1e-3, 0.0], dtype=torch.float64)[:, None]
    together = conjugate_gradients(apply, r, most=3, tolerance=1e-12)
    for row in range(4):
        assert torch.equal(conjugate_gradients(apply, r[row : row + 1], most=3, tolerance=1e-12).value[0],
                           together.value[row])  # fmt: skip
    assert torch.allclose(together.value, r @ torch.linalg.inv(matrix), rtol=1e-9)
    assert bool((together.value[3] == 0).all())
    short = conjugate_gradients(apply, r[:1], most=1)
    left = (r[:1] - apply(short.value)).norm() / r[:1].norm()
    assert short.steps == 1 and float(short.residual) == pytest.approx(float(left)) and float(left) > 1e-3


def test_gcr_solves_what_is_neither_symmetric_nor_positive():
    matrix = normal(6, 6, seed=10) - 2 * torch.eye(6, dtype=torch.float64)
    r = normal(3, 6, seed=11)
    found = gcr(lambda u: u @ matrix.T, r, steps=6)
    assert torch.allclose(found.value @ matrix.T, r, atol=1e-8)
    residuals = [gcr(lambda u: u @ matrix.T, r, steps=n).residual for n in range(1, 6)]
    assert all(bool((b <= a + 1e-12).all()) for a, b in zip(residuals, residuals[1:], strict=False))
    assert bool((residuals[0] <= 1).all())


def test_prox_satisfies_its_normal_equations():
    for operator in operators().values():
        x = normal(3, *SHAPE, seed=12)
        y = operator(normal(3, *SHAPE, seed=13))
        z = prox(operator, x, y, 0.3)
        left = operator.adjoint(operator(z) - y) + 0.3 * (z - x)
        assert float(left.abs().max()) < 1e-10
    with pytest.raises(ValueError, match="rho must be positive"):
        prox(operator, x, y, 0.0)


def test_the_pseudo_inverse_without_a_spectrum(monkeypatch: pytest.MonkeyPatch):
    operator = operators()["twice"].fit(SHAPE)
    y = normal(3, 9, seed=14)  # no sample makes this
    wanted = operator.pinv(y)
    assert torch.allclose(wanted.flatten(1), y @ torch.linalg.pinv(operator.matrix()).T, atol=1e-9)
    monkeypatch.setattr(type(operator), "spectrum", lambda self: None)
    assert torch.allclose(operator.pinv(y), wanted, atol=1e-7)


def test_a_covariance_known_by_its_products():
    operator, full = operators()["wide"].fit(SHAPE), covariances()["full"]
    r = normal(2, 7, seed=15)
    known = Applied(full.times, float(full.mean()), full.root)
    assert torch.allclose(Inverse(operator, known, Same(0.1))(r), Inverse(operator, full, Same(0.1))(r))
    assert torch.allclose(known.scaled(4.0).root(normal(2, *SHAPE)), 2 * full.root(normal(2, *SHAPE)))
    with pytest.raises(ValueError, match="products alone"):
        Applied(full.times, 1.0).root(normal(2, *SHAPE))


def test_roots_have_the_covariance():
    for c in covariances().values():
        eye = torch.eye(D, dtype=torch.float64).reshape(D, *SHAPE)
        root = c.root(eye).reshape(D, D)  # rows are columns of the root
        assert torch.allclose(root.T @ root, c.matrix(SHAPE)[0], atol=1e-10)


def test_what_is_left_of_a_covariance_once_a_noisy_state_is_known():
    x, k, s = normal(3, *SHAPE, seed=16), 0.7, 0.3
    for c in covariances().values():
        whole, eye = c.matrix(SHAPE)[0], torch.eye(D, dtype=torch.float64)
        inverse = torch.linalg.inv(k * whole + s * eye)
        assert torch.allclose(c.resolvent(k, s, x).flatten(1), x.flatten(1) @ inverse, atol=1e-9)
        left = whole - k * whole @ inverse @ whole
        assert torch.allclose(c.left(k, s).matrix(SHAPE)[0], left, atol=1e-9)
        assert float(c.left(k, 0.0).matrix(SHAPE).abs().max()) < 1e-12
