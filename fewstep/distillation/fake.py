"""The score of a student's own samples: the teacher's copy, or an adapter on it, trained while the student moves."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import Tensor

from fewstep.core.denoiser import Denoiser
from fewstep.core.errors import suggest
from fewstep.core.prediction import expand
from fewstep.denoisers.network import NetworkDenoiser
from fewstep.distillation.adapter import RANK
from fewstep.distillation.distances import squared
from fewstep.distillation.method import Setting

FAKES = ("copy", "lora")


def fake_of(setting: Setting, fake: str = "copy") -> Denoiser:
    """What the score of samples begins as, and trains, in evaluation mode, as it has no dropout.

    fake: "copy" of the network, or "lora", an adapter on its own weights, of the student's rank or, beside a student
        that is a copy, of rank 8.

    Raises:
        ValueError: another word, and what `Setting.training` raises.
    """
    if fake not in FAKES:
        raise suggest("kind of fake score", fake, FAKES)
    rank = None if fake == "copy" else setting.lora or RANK
    return setting.training(setting.fake or setting.base, rank, seed=setting.seed + 1).eval()


def denoising(model: Denoiser, x0: Tensor, eps: Tensor, t: Tensor, condition: Mapping[str, Any]) -> Tensor:
    """The model's own denoising loss (B,) on samples (B, *shape): the mean square in the network's kind (`loss_pair`),
    of x0 for closed forms. x0 and eps have no gradient of their own here; t is (B,)."""
    if isinstance(model, NetworkDenoiser):
        return squared(*model.loss_pair(x0, eps, t, **condition))
    x_t = expand(model.process.alpha(t), x0) * x0 + expand(model.process.sigma(t), x0) * eps
    return squared(model(x_t, t, **condition).x0, x0)
