"""A predictor of scores from a few hundred rated candidates: kernel ridge regression, judged by leaving one out."""

from __future__ import annotations

import numpy as np

WIDTHS = (0.5, 1.0, 2.0, 4.0)  # of the kernel, in median distances
RIDGES = (1e-4, 1e-3, 1e-2, 1e-1, 1.0)


class Predictor:
    """`predictor(features)`: the values expected, of what was fitted on `features` `(n, d)` and finite `values` `(n,)`.

    The kernel is a Gaussian on standardised features. Its width and the ridge are those with the least error on values
    left out one at a time, which has a closed form: with `G = K + ridge I` the error at i is `(G^-1 y)_i / (G^-1)_ii`.
    `left_out` `(n,)` are the values so predicted, each without having been seen.

    Raises:
        ValueError: fewer than three candidates, or values that are not finite.
    """

    def __init__(self, features: np.ndarray, values: np.ndarray):
        features, values = np.asarray(features, dtype=np.float64), np.asarray(values, dtype=np.float64)
        if len(features) < 3 or len(features) != len(values) or not np.isfinite(values).all():
            raise ValueError(
                f"a predictor is fitted on at least 3 candidates with finite values, got {len(features)} candidates"
                f" and {int(np.isfinite(values).sum())} finite values"
            )
        self._mean, spread = features.mean(0), features.std(0)
        self._spread = np.where(spread > 0, spread, 1.0)
        self._points = (features - self._mean) / self._spread
        self._level = float(values.mean())
        square = _square_distances(self._points, self._points)
        apart = square[square > 1e-12]
        self._unit = float(np.median(apart)) if apart.size else 1.0
        least = np.inf
        for width in WIDTHS:
            values_k, vectors = np.linalg.eigh(np.exp(-0.5 * square / (self._unit * width**2)))
            projected = vectors.T @ (values - self._level)
            for ridge in RIDGES:
                inverse = 1 / (np.maximum(values_k, 0) + ridge)
                weights = vectors @ (inverse * projected)
                errors = weights / (vectors**2 @ inverse)
                if (error := float(np.mean(errors**2))) < least:
                    least, self._width, self._weights = error, width, weights
                    self.left_out = values - errors

    def __call__(self, features: np.ndarray) -> np.ndarray:
        points = (np.asarray(features, dtype=np.float64) - self._mean) / self._spread
        square = _square_distances(points, self._points)
        return self._level + np.exp(-0.5 * square / (self._unit * self._width**2)) @ self._weights


def _square_distances(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    return np.maximum((a**2).sum(1)[:, None] + (b**2).sum(1) - 2 * a @ b.T, 0.0)
