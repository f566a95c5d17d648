"""dynamic-thresholding: off bit for bit, and Imagen's formula where it acts."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from fewstep.conditions.label import Label
from fewstep.core.denoiser import Denoiser
from fewstep.core.noise import Noise
from fewstep.core.prediction import Prediction
from fewstep.processes.flow import Flow
from fewstep.processes.vp import VP
from fewstep.sampling.build import plan
from fewstep.sampling.thresholding import Thresholded, quantile


class Wide(Denoiser):
    """Answers `scale` times a smooth function in [-1, 1], in any kind."""

    value_range = (-1.0, 1.0)
    conditions = {"label": Label(3)}

    def __init__(self, process, kind: str, scale: float):
        super().__init__()
        self.process, self.kind, self.scale = process, kind, scale

    def forward(self, x, t, **condition):
        x0 = Prediction(self.scale * torch.sin(3 * x), "x0", x, t, self.process)
        return Prediction(x0.to(self.kind), self.kind, x, t, self.process)


@pytest.mark.parametrize("kind", ["x0", "eps", "v", "velocity"])
def test_within_the_range_it_is_the_base_bit_for_bit(kind):
    process = VP()
    base = Wide(process, kind, 0.97)
    model, noise = Thresholded(base, percentile=1.0), Noise(1).normal(0, (5, 2, 3))
    assert torch.equal(plan(process, "dpmpp-2m", 6)(model, noise, label=2), plan(process, "dpmpp-2m", 6)(base, noise))


@pytest.mark.parametrize("kind", ["x0", "eps", "v"])
@pytest.mark.parametrize("percentile", [1.0, 0.8])
def test_outside_it_is_imagens_formula(kind, percentile):
    """numpy: s = max(1, quantile of |x0|), x0 = clip(x0, -s, s) / s, a sample at a time."""
    process, t = VP(), torch.tensor(0.4, dtype=torch.float64)
    x = Noise(2).normal(0, (6, 3, 5), "cpu", torch.float64)
    x[0] *= 0.01
    base = Wide(process, kind, 2.5)
    answer = Thresholded(base, percentile)(x, t)
    assert answer.kind == kind
    expected = []
    for x0 in base(x, t).x0.numpy():
        s = max(1.0, float(np.quantile(np.abs(x0), percentile)))
        expected.append(np.clip(x0, -s, s) / s)
    np.testing.assert_allclose(answer.x0.numpy(), np.stack(expected), rtol=1e-9, atol=1e-12)
    assert float(answer.x0.abs().max()) <= 1 + 1e-12


def test_another_range_is_centred():
    process, t = VP(), torch.tensor(0.4, dtype=torch.float64)
    x = Noise(2).normal(0, (4, 7), "cpu", torch.float64)
    base = Wide(process, "x0", 9.0)
    x0 = Thresholded(base, 1.0, value_range=(0.0, 4.0))(x, t).x0
    y = (base(x, t).x0 - 2.0) / 2.0
    torch.testing.assert_close(x0, 2.0 + 2.0 * y / y.abs().amax(1, keepdim=True))


def test_it_works_from_pure_noise_and_alone_as_in_a_batch():
    process = Flow()
    model, noise = Thresholded(Wide(process, "velocity", 3.0)), Noise(1).normal(0, (5, 2, 3))
    made = plan(process, "ddim", 6)
    together = made(model, noise)
    torch.testing.assert_close(together, torch.cat([made(model, noise[i : i + 1]) for i in range(5)]))
    assert float(together.abs().max()) <= 1 + 1e-5


def test_the_quantile_is_numpys():
    values = Noise(0).normal(0, (3, 11), "cpu", torch.float64)
    for q in (0.1, 0.37, 0.995, 1.0):
        np.testing.assert_allclose(quantile(values, q).numpy(), np.quantile(values.numpy(), q, axis=1), rtol=1e-12)


def test_bad_settings():
    base = Wide(VP(), "x0", 1.0)
    for percentile in (0.0, 1.1):
        with pytest.raises(ValueError, match="percentile must be above 0 and at most 1"):
            Thresholded(base, percentile)
    with pytest.raises(ValueError, match="value_range must rise"):
        Thresholded(base, value_range=(1.0, -1.0))
    base.value_range = None
    with pytest.raises(ValueError, match="needs the data's range"):
        Thresholded(base)
