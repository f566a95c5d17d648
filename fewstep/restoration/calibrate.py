"""`fs.calibrate(model)`: how wrong a model's x0 is, measured once."""

from __future__ import annotations

import math
from typing import Any, Literal

import torch
from torch import Tensor

from fewstep.core.arguments import checked
from fewstep.core.denoiser import Denoiser, Wrapper
from fewstep.core.noise import Noise
from fewstep.core.process import Process
from fewstep.data.open import is_built_in, open_built_in
from fewstep.denoisers.calibration import Calibration
from fewstep.operators.cosine import cosine_matrix
from fewstep.operators.spectrum import on_axis
from fewstep.sampling.sample import sample

DENSE = 1024  # numbers of a sample up to which all products are kept
ROWS = 256  # evaluated at once


@checked
@torch.no_grad()
def calibrate(
    model: Denoiser,
    data: Tensor | None = None,
    n: int = 512,
    levels: int = 24,
    basis: Literal["number", "elements", "cosine", "dense"] | None = None,
    seed: int = 0,
    **condition: Any,
) -> Calibration:
    """The mean of `(x0_hat - x0)(x0_hat - x0)^T` at `levels` log-SNRs, which becomes `model.calibration`.

    It takes `n levels` evaluations. `fs.save` keeps it with the model.

    Args:
        data: clean samples `(m, *shape)`, taken in turn; by default those of the model's own data set, or else the
            model's own samples. Those of a model of latents are encoded, and what is measured is its error in latents.
        basis: "number", "elements", "cosine" (the default for pictures) or "dense" (up to 1024 numbers; the default for
            vectors).
        **condition: as for `fs.sample`, one for all.

    Raises:
        ValueError: fewer than 16 samples or 2 levels, samples of another shape, a model of any shape, a basis that the
            samples are too large for, answers that are not finite.
    """
    if n < 16 or levels < 2:
        raise ValueError(f"a calibration needs at least 16 samples at 2 levels, got n={n} and levels={levels}")
    if model.shape is None:
        raise ValueError("this model takes any shape: a calibration is of one")
    shape = tuple(model.shape)
    basis = basis or ("cosine" if len(shape) > 1 else "dense")
    if basis == "dense" and math.prod(shape) > DENSE:
        raise ValueError(f"'dense' keeps all products of up to {DENSE} numbers, and samples have {math.prod(shape)}")
    clean = _clean(model, data, n, seed, condition)
    named = model.check_condition(condition, len(clean), clean.device)
    grid, source = _levels(model.process, levels), Noise(seed)
    values = []
    for number, log_snr in enumerate(grid.tolist()):
        t = torch.tensor(model.process.time(log_snr), dtype=torch.float64, device=clean.device)
        alpha, sigma = model.process.alpha(t), model.process.sigma(t)
        noise = source.normal(number + 1, tuple(clean.shape), clean.device, clean.dtype)
        state = alpha.to(clean) * clean + sigma.to(clean) * noise
        parts = torch.arange(len(clean), device=clean.device).split(ROWS)
        told = [{name: own[rows] for name, own in named.items()} for rows in parts]
        answers = [model(state[rows], t.to(clean.dtype), **one) for rows, one in zip(parts, told, strict=True)]
        x0 = torch.cat([answer.x0 for answer in answers])
        error = (x0 - clean).double()
        if not bool(torch.isfinite(error).all()):
            raise ValueError(f"the model's answers at log-SNR {log_snr:.3g} are not finite")
        values.append(_products(error, basis))
    made = Calibration(basis, grid, torch.stack(values).cpu(), model.process.config())
    keep(model, made)
    return made


def keep(model: Denoiser, calibration: Calibration) -> None:
    """Set `calibration` as what is known of a model, and of what it wraps as far as its answers are the same."""
    calibration.check(model.process.config(), tuple(model.shape or ()))
    model.calibration = calibration


def _clean(model: Denoiser, data: Tensor | None, n: int, seed: int, condition: dict[str, Any]) -> Tensor:
    """n clean samples in the model's coordinates."""
    if data is None and isinstance(name := model.facts.data, str) and is_built_in(name):
        opened = open_built_in(name, split="train")
        chosen = torch.randperm(len(opened), generator=torch.Generator().manual_seed(seed))[:n]
        data = opened[chosen][0]
    if data is None:
        data = sample(model, n, solver="dpmpp-2m", steps=24, seed=seed, **condition)
    if not isinstance(data, Tensor) or not data.is_floating_point() or not len(data):
        raise ValueError("data must be clean samples (m, *shape) as floats")
    dtype = torch.float64 if data.dtype == torch.float64 else torch.float32
    data = data[torch.arange(n, device=data.device) % len(data)]
    encoded = torch.cat([
        model.encode(part, **model.check_condition(condition, len(part), model.device))
        for part in data.to(model.device, dtype).split(ROWS)
    ])  # fmt: skip
    if tuple(encoded.shape[1:]) != tuple(model.shape or ()):
        raise ValueError(f"samples of shape {tuple(data.shape[1:])} do not fit the model, which has {model.shape}")
    return encoded


def _levels(process: Process, count: int) -> Tensor:
    """Even log-SNRs over the clock; an infinite end is cut by a thousandth of it."""
    span = process.t_max - process.t_min
    low = process.log_snr(process.t_max)
    low = low if math.isfinite(low) else process.log_snr(process.t_max - 1e-3 * span)
    return torch.linspace(low, process.log_snr(process.t_min), count, dtype=torch.float64)


def _products(error: Tensor, basis: str) -> Tensor:
    if basis == "number":
        return error.square().mean()
    if basis == "dense":
        flat = error.flatten(1)
        return flat.mT @ flat / len(flat)
    if basis == "cosine":
        for axis in range(1 if error.ndim > 2 else 0, error.ndim - 1):
            error = on_axis(error, cosine_matrix(error.shape[axis + 1]).to(error), axis)
    return error.square().mean(0)


def calibration_of(model: Denoiser) -> Calibration:
    """A model's calibration: the one that it has, that of what it wraps, or one that is measured now."""
    known = model.facts.calibration
    if known is None:
        inner = model
        while known is None and isinstance(inner, Wrapper):
            inner = inner.model
            known = inner.facts.calibration
    return known if known is not None else calibrate(model)
