"""The matrix of the cosine transform against SciPy's."""

from __future__ import annotations

import numpy as np
import torch
from scipy.fft import dct

from fewstep.operators.cosine import cosine_matrix


def test_it_is_scipys_orthonormal_transform():
    for n in (1, 2, 7, 16):
        matrix = cosine_matrix(n)
        assert np.allclose(matrix.numpy(), dct(np.eye(n), norm="ortho", axis=0))
        assert torch.allclose(matrix @ matrix.T, torch.eye(n, dtype=torch.float64))
