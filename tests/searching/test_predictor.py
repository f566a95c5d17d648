"""The predictor: its left-out values are those of real refits, and it ranks what it has not seen."""

from __future__ import annotations

import numpy as np
import pytest

from fewstep.searching.predictor import WIDTHS, Predictor


def data(n: int, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(seed)
    x = rng.normal(size=(n, 3)) * [1.0, 10.0, 0.1]
    return x, np.sin(x[:, 0]) + 0.05 * x[:, 1] + 20 * x[:, 2] ** 2


def test_left_out_values_are_those_of_fits_without_them():
    x, y = data(20)
    predictor = Predictor(x, y)
    assert predictor._width in WIDTHS
    points = (x - x.mean(0)) / x.std(0)
    square = ((points[:, None] - points) ** 2).sum(2)
    kernel = np.exp(-0.5 * square / (np.median(square[square > 1e-12]) * predictor._width**2))
    # The ridge is recovered from the fit: (K + ridge I) w = y - mean.
    ridge = np.mean((y - y.mean() - kernel @ predictor._weights) / predictor._weights)
    for i in (0, 7, 19):
        rest = np.delete(np.arange(20), i)
        weights = np.linalg.solve(kernel[np.ix_(rest, rest)] + ridge * np.eye(19), (y - y.mean())[rest])
        assert predictor.left_out[i] == pytest.approx(y.mean() + kernel[i, rest] @ weights, rel=1e-5)


def test_it_follows_a_smooth_function_and_ranks_unseen_points():
    from scipy.stats import kendalltau

    x, y = data(120)
    unseen, truth = data(60, seed=1)
    assert kendalltau(Predictor(x, y)(unseen), truth).statistic > 0.7


def test_constant_features_and_equal_values_do_no_harm():
    x = np.ones((5, 2))
    np.testing.assert_allclose(Predictor(x, np.full(5, 2.0))(x), 2.0)


def test_what_cannot_be_fitted():
    x, y = data(5)
    with pytest.raises(ValueError, match="at least 3"):
        Predictor(x[:2], y[:2])
    with pytest.raises(ValueError, match="4 finite"):
        Predictor(x, np.array([1.0, 2.0, np.inf, 0.0, 1.0]))
