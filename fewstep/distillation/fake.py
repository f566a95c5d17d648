"""The score of a student's own samples: a copy of the teacher that is trained on them while the student moves."""

from __future__ import annotations

import copy
from collections.abc import Mapping
from typing import Any

from torch import Tensor

from fewstep.core.denoiser import Denoiser
from fewstep.core.prediction import expand
from fewstep.denoisers.network import NetworkDenoiser
from fewstep.distillation.distances import squared


def fake_of(base: Denoiser) -> Denoiser:
    """A copy of the teacher's network denoiser whose weights train, in evaluation mode: it has no dropout."""
    return copy.deepcopy(base).eval().requires_grad_(True)


def denoising(model: Denoiser, x0: Tensor, eps: Tensor, t: Tensor, condition: Mapping[str, Any]) -> Tensor:
    """The denoising loss (B,) on samples: in the network's own kind (`loss_pair`), and for denoisers without a network
    the squared error of x0 over `1 + (sigma / alpha)^2`."""
    if isinstance(model, NetworkDenoiser):
        return squared(*model.loss_pair(x0, eps, t, **condition))
    alpha, sigma = model.process.alpha(t), model.process.sigma(t)
    x = expand(alpha, x0) * x0 + expand(sigma, x0) * eps
    error = squared(model(x, t, **condition).x0, x0)
    return error / (1 + (sigma / alpha.clamp(min=1e-6)).square()).to(error)
