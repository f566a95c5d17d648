"""Dynamic thresholding: predictions of x0 kept in the data's range, each sample by its own quantile."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from fewstep.core.denoiser import Denoiser, Wrapper
from fewstep.core.methods import Method
from fewstep.core.prediction import Prediction, conversion, expand, scales

METHODS = (
    Method(
        "dynamic-thresholding",
        kind="correction",
        paper="Photorealistic Text-to-Image Diffusion Models with Deep Language Understanding (Saharia et al., 2022)",
        arxiv="2205.11487",
        claim="no x0 leaves the data's range, however strong the guidance; predictions within it stay bit for bit",
        use="Thresholded",
        facts={"wraps": True, "changes": ("value_range",)},
    ),
)


class Thresholded(Wrapper):
    """A denoiser whose x0 is clipped to its own quantile and divided by it (Saharia et al., section 2.3).

    With y in [-1, 1] for the data's range, s is the `percentile` quantile of |y| over one sample's elements; where
    s > 1, `y <- clip(y, -s, s) / s`. Samples with s <= 1 have their values clipped to [-1, 1] (static thresholding);
    nothing else is changed, and the prediction keeps the base's kind.

    Args:
        model: it must have a `value_range`, unless one is given. Where it predicts eps there is no x0 at alpha = 0.
        percentile: in (0, 1]; Imagen's and DPM-Solver++'s is 0.995.

    Raises:
        ValueError: a percentile out of range; no value range.
    """

    def __init__(self, model: Denoiser, percentile: float = 0.995, value_range: tuple[float, float] | None = None):
        if not 0 < percentile <= 1:
            raise ValueError(f"percentile must be above 0 and at most 1, got {percentile}")
        limits = value_range or model.value_range
        if limits is None:
            raise ValueError("thresholding needs the data's range: give value_range=(low, high)")
        if not limits[0] < limits[1]:
            raise ValueError(f"value_range must rise, got {limits}")
        super().__init__(model, value_range=(float(limits[0]), float(limits[1])))
        self.percentile = percentile

    def config(self) -> dict[str, Any]:
        return {"model": self.model, "percentile": self.percentile, "value_range": self.value_range}

    def forward(self, x: Tensor, t: Tensor, **condition: Any) -> Prediction:
        answer = self.model(x, t, **condition)
        x0 = answer.x0
        change = self._limited(x0) - x0
        # value = P x + Q x0, so a changed x0 moves it by Q times the change.
        factor = conversion("x0", answer.kind, *scales(self.process, t))[1]
        value = torch.where(change == 0, answer.value, answer.value + expand(torch.as_tensor(factor), x) * change)
        return answer.replaced(value)

    def _limited(self, x0: Tensor) -> Tensor:
        assert self.value_range is not None
        low, high = self.value_range
        centre, half = (low + high) / 2, (high - low) / 2
        y = (x0 - centre) / half
        s = quantile(y.abs().flatten(1), self.percentile).clamp(min=1.0).reshape(-1, *[1] * (x0.ndim - 1))
        inside = (s == 1) & (x0 >= low) & (x0 <= high)
        return torch.where(inside, x0, centre + half * (y.clamp(-s, s) / s))


def quantile(values: Tensor, q: float) -> Tensor:
    """The q-quantile of each row of `(B, n)`, `(B,)`, by a line between two elements (torch's has a largest length)."""
    ordered = values.sort(dim=1).values
    place = q * (values.shape[1] - 1)
    below = int(place)
    above = min(below + 1, values.shape[1] - 1)
    return ordered[:, below] + (place - below) * (ordered[:, above] - ordered[:, below])
