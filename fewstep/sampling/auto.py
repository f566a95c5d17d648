"""What is taken where no solver is named: what does best over many kinds of models, by what is known of one."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any
from weakref import WeakKeyDictionary

import torch

from fewstep.conditions.label import Label
from fewstep.conditions.picture import Picture
from fewstep.core.bands import Bands
from fewstep.core.denoiser import Denoiser, Wrapper
from fewstep.core.errors import suggest
from fewstep.core.mode import evaluating
from fewstep.core.noise import Noise
from fewstep.core.process import Process
from fewstep.sampling.universal import DATA_STD, SPECTRUM, rows

MEASURED_AT = -3.0  # log-SNR relative to the data at which the spectrum is measured
NOISES = 4
GUIDED = ", guided"
LATER = 0.3  # of log-SNR by which a process may begin after a row
EARLIER = 1.0  # by which it may begin before a late row
LATE = "late"  # the spectrum of rows for processes that begin where some of the data is left
STEEP = 16.0  # from this concentration on
SMALL = 5  # numbers in a sample, up to which its modes part late, where there is little noise
REACHED = -1.5  # log-SNR relative to the data below which a process begins at noise
# Up to this many evaluations: a solver and a rule where a universal plan is not to be had (docs/universal.json).
HAND_MADE = ((8, ("unipc-2", "log-snr")), (15, ("dpmpp-3m", "log-snr")), (math.inf, ("unipc-3", "log-snr")))
ONE = ("dpmpp-2m", "short")  # a single evaluation from noise to data
# From noise to data, instead of those: from and to so many evaluations (with a steep spectrum, to fewer: closed forms
# of a few pictures need a grid that reaches lower), and under guidance.
WHOLE, WHOLE_GUIDED = ("ab-4", "admissible"), ("ab-3", "admissible")
WHOLE_FROM, WHOLE_TO, WHOLE_TO_STEEP = 9, 20, 15
# The same with fresh noise at every step (docs/stochastic.json).
SDE = "auto-sde"
STOCHASTIC = (
    (4, ("sa-solver", "short")),
    (10, ("dpmpp-2m-sde", "short")),
    (math.inf, ("dpmpp-3m-sde", "admissible")),
)

# By the innermost model: how often its weights had been written, and what was measured then.
_concentrations: WeakKeyDictionary[Denoiser, tuple[int, float]] = WeakKeyDictionary()


def data_std(model: Denoiser) -> float:
    """The standard deviation of a model's data: known, or 1 for latents and unbounded data and 0.5 for pictures."""
    known = model.facts
    if known.data_std is not None:
        return known.data_std
    return 1.0 if known.value_range is None or known.autoencoder is not None else DATA_STD


@torch.no_grad()
def concentration(model: Denoiser) -> float:
    """How few directions the data's variance lies in: the mean variance, weighted by itself, over the plain mean.

    1 where all directions have the same variance, about 100 for natural images. For a covariance C of n numbers it is
    `n tr(C^2) / tr(C)^2`. Under much noise the denoiser of any data is `mean + C z / s` for pure noise `s z`, so one
    evaluation of a few noises shows it; a model is asked once, and again when its weights have been written to. What it
    is wrapped in is not asked.

    Raises:
        ValueError: a model of no known shape, or that must be given a condition.
    """
    model = _innermost(model)
    written, (before, known) = _written(model), _concentrations.get(model, (-1, 0.0))
    if written == before:
        return known
    if model.shape is None:
        raise ValueError("this denoiser takes any shape: its spectrum cannot be measured")
    std, process = data_std(model), model.process
    # A process that does not reach that much noise is asked at its own noisiest level.
    log_snr = max(MEASURED_AT - math.log(std), process.log_snr(process.t_max))
    t = process.time(log_snr)
    noise = Noise(0, 0).normal(0, (NOISES, *model.shape), device=model.device, dtype=torch.float32)
    condition = _unasked(model, NOISES)
    x = noise * process.sigma(t)
    with evaluating(model):
        x0 = model(x, torch.tensor(t, dtype=torch.float64, device=model.device), **condition).x0.double()
    spread = float((x0 - x0.mean(0)).square().sum() / (NOISES - 1) / x0[0].numel())
    found = spread * math.exp(-2 * log_snr) / std**4
    _concentrations[model] = written, found
    return found


def spectrum(model: Denoiser) -> str:
    """Which of the universal plans' spectra a model is of: "mild" where the scale of its data is a guess."""
    known = model.facts
    guessed = known.value_range is None and known.autoencoder is None and known.data_std in (None, DATA_STD)
    kind = "steep" if not guessed and concentration(model) >= STEEP else "mild"
    if "guidance" in model.conditions:
        return kind + GUIDED
    return "small" if math.prod(model.shape or ()) <= SMALL else kind


def facts(model: Denoiser) -> dict[str, Any]:
    """What `automatic` wants to know of a model: options for `fs.plan` where no solver is named.

    The spectrum is None for a model whose samples are not drawn from noise alone (it takes a picture), or of any shape.
    """
    inner = _innermost(model)
    pictures = any(isinstance(kind, Picture) for kind in inner.conditions.values())
    if inner.shape is None or pictures or not from_noise(model.process):
        return {"spectrum": None}
    try:
        return {"data_std": data_std(model), "spectrum": spectrum(model)}
    except ValueError:  # a model that refuses to be asked for nothing
        return {"spectrum": None}


def _innermost(model: Denoiser) -> Denoiser:
    """What all wrappers are around: they may hold values of each sample, which a measurement has not."""
    while isinstance(model, Wrapper):
        model = model.model
    return model


def _written(model: Denoiser) -> int:
    """A number that changes when a weight is written to."""
    tensors = (*model.parameters(), *model.buffers())
    return sum(0 if tensor.is_inference() else tensor._version for tensor in tensors)


def _unasked(model: Denoiser, n: int) -> dict[str, Any]:
    """Conditions of n samples of which nothing is asked, or one class throughout; `ValueError` where more must be."""
    try:
        return dict(model.check_condition({}, n, model.device))
    except ValueError:
        one = {name: 0 for name, kind in model.conditions.items() if isinstance(kind, Label)}
        return dict(model.check_condition(one, n, model.device))


def from_noise(process: Process) -> bool:
    """Whether a process begins at Gaussian noise, of one level for all elements."""
    return type(process).start is Process.start and not isinstance(process, Bands)


def _row(kind: str, n: int, begins: float) -> str | None:
    """The spectrum whose row of n evaluations serves a process that begins at log-SNR `begins`, relative to the data.

    A row that begins before the process does would lose its first evaluations, so a late one takes its place; a late
    one, where the process begins long before, would miss the data that its noise holds already.
    """
    plain = kind.removesuffix(GUIDED)
    late = LATE + GUIDED if kind != plain else LATE
    for name in (kind, late, plain, LATE):
        row = rows().get(name, {}).get(n)
        if row is None:
            continue
        if begins >= row.log_snr[0] - EARLIER if name.startswith(LATE) else begins <= row.log_snr[0] + LATER:
            return name
    return None


def automatic(
    process: Process, n: int | None, whole: bool, options: Mapping[str, Any]
) -> tuple[str, str | None, dict[str, Any]]:
    """The solver, the timestep rule and the options that are taken where no solver is named.

    Args:
        n: evaluations. whole: whether the plan goes from noise to data on times of its own choice. options:
            `data_std` and `spectrum`, where they are known.

    Raises:
        ValueError: other options: they belong to a solver.
    """
    for name in options:
        if name not in ("data_std", "spectrum"):
            raise suggest("option where no solver is named", name, ("data_std", "spectrum"))
    std, kind = options.get("data_std", DATA_STD), options.get("spectrum", SPECTRUM)
    if kind is not None and kind not in rows():
        raise suggest("spectrum", kind, rows())
    begins = process.log_snr(process.t_max) + math.log(std) if from_noise(process) else math.inf
    if whole and n is not None and kind is not None and begins < REACHED:
        if (found := _row(kind, n, begins)) is not None:
            return "universal", None, {"data_std": std, "spectrum": found}
    if whole and n == 1:
        return *ONE, {}
    if whole and n is not None and kind is not None:
        guided = kind.endswith(GUIDED)
        if WHOLE_FROM <= n <= (WHOLE_TO_STEEP if kind == "steep" else WHOLE_TO):
            return *(WHOLE_GUIDED if guided else WHOLE), {}
    return *next((found for most, found in HAND_MADE if n is None or n <= most)), {}


def automatic_sde(n: int | None) -> tuple[str, str]:
    """The solver and the timestep rule of `auto-sde` at n evaluations: fresh noise at every step."""
    return next(found for most, found in STOCHASTIC if n is None or n <= most)
