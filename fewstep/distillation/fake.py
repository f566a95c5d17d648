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
    """A copy of the base whose weights train, in evaluation mode: the score of samples has no dropout."""
    return copy.deepcopy(base).eval().requires_grad_(True)


def denoising(model: Denoiser, x0: Tensor, eps: Tensor, t: Tensor, condition: Mapping[str, Any]) -> Tensor:
    """The model's own denoising loss (B,) on samples (B, *shape): the mean square in the network's kind (`loss_pair`),
    of x0 for closed forms. x0 and eps have no gradient of their own here; t is (B,)."""
    if isinstance(model, NetworkDenoiser):
        return squared(*model.loss_pair(x0, eps, t, **condition))
    x_t = expand(model.process.alpha(t), x0) * x0 + expand(model.process.sigma(t), x0) * eps
    return squared(model(x_t, t, **condition).x0, x0)
