"""Claims of how errors are weighted, averaged and drawn over noise levels."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from claims import objectives
from claims.common import F64, Claim, Cosine, Denoiser, Outcome, Run, arms, experiment, slow, tolerance
from claims.objectives import ABOUT_PLANE, PROCESS, digits, plane, points
from claims.problems import mixture
from claims.trained import NetworkDenoiser, NoiseLevels, Objective
from fewstep.denoisers.learned_variance import reverse_step
from fewstep.training.importance import ImportanceLevels
from fewstep.training.learned_variance import earlier
from fewstep.training.weightings import weighting

BATCHES, BATCH, WARM = 200, 64, 60
_coarse = functools.partial(objectives.digits_x0_error, log_snr=(1.0, -3.0), side=2)
_distance = functools.partial(objectives.digits_distance, nfe=10)


def _scatter(importance: bool, seed: int) -> float:
    """Variance of a batch's gradient of the bound, summed over all weights."""
    model, generator = plane("constant", seed), torch.Generator().manual_seed(seed)
    objective, base = Objective(model, weighting("elbo-weighting")), NoiseLevels(PROCESS)
    levels, data, gradients = ImportanceLevels(base), points(), []
    for number in range(WARM + BATCHES):
        drawn = levels if importance or number < WARM else base
        x0 = data[torch.randint(len(data), (BATCH,), generator=generator)]
        eps = torch.randn(x0.shape, generator=generator)
        t = drawn.quantile(torch.rand(BATCH, generator=generator, dtype=F64))
        losses = objective(x0, eps, t, {})
        weight = levels.weight(t) if drawn is levels else torch.ones_like(t)
        if number < WARM:
            levels.update(t, losses)
            continue
        found = torch.autograd.grad((losses * weight.to(losses)).mean(), list(model.network.parameters()))
        gradients.append(torch.cat([gradient.flatten() for gradient in found]))
    return float(torch.stack(gradients).double().var(0).sum())


def _unbiased(seed: int) -> Outcome:
    """On losses that grow over five decades."""
    levels, base = ImportanceLevels(NoiseLevels(PROCESS), bins=32), NoiseLevels(PROCESS)
    even = base.quantile((torch.arange(100_000, dtype=F64) + 0.5) / 100_000)
    levels.update(even, even**5)
    t = levels.quantile((torch.arange(100_000, dtype=F64) + 0.5) / 100_000)
    functions = (torch.sin, torch.exp, lambda t: t**2)
    worst = max(float(((levels.weight(t) * f(t)).mean() / f(even).mean() - 1).abs()) for f in functions)
    return tolerance(worst, 1e-3, "means of sin t, e^t and t^2 by 100000 even shares", "relative difference")


def _error(said: str, seed: int) -> float:
    """Root mean square difference from the optimal log-variance, of what was "learned" or of a bound."""
    truth, generator = mixture(PROCESS), torch.Generator().manual_seed(seed)
    t = PROCESS.time(torch.linspace(2.5, -2, 2000, dtype=F64))
    alpha, sigma = PROCESS.alpha(t)[:, None], PROCESS.sigma(t)[:, None]
    x = alpha * truth.sample(2000, seed + 1) + sigma * torch.randn(2000, 2, generator=generator, dtype=F64)
    spread = []
    for i in range(2):  # Var[x0 | x] = sigma^2 / alpha d x0 / d x, value by value
        e = torch.eye(2, dtype=F64)[i].expand_as(x)
        spread.append(torch.func.jvp(lambda y: truth(y, t).x0, (x,), (e,))[1][:, i])
    left = sigma**2 / alpha * torch.stack(spread, dim=1)
    made = reverse_step(PROCESS, t, earlier(PROCESS, t, objectives.CHAIN))
    best, span = torch.log1p(made.gap[:, None] * left), made.span[:, None].expand_as(x)
    with torch.no_grad():
        found = objectives.hybrid(seed)(x.float(), t).fraction.double() * span
    values = {"learned": found, "lower": torch.zeros_like(span), "upper": span}
    return float((values[said] - best).square().mean().sqrt())


def _against_pixels(figure: Callable[[Denoiser, int], float], what: str, unit: str) -> Run:
    """The loss at three scales against that of single pixels."""
    about = f"{objectives.ABOUT_DIGITS}, sides 8, 4 and 2; {what}"
    against = "the error of single pixels"
    return arms(lambda arm, s: figure(digits(arm, s), s), "multiscale", "constant", against, about, unit=unit)


@experiment
def _stated(seed: int, name: str, predicts: str, expected: str, precondition: str, options: dict[str, Any]) -> Outcome:
    """Largest relative difference of the weight of the network's own error from what the paper states."""
    process, t = Cosine(), torch.linspace(0.01, 0.98, 98, dtype=F64)
    model = NetworkDenoiser(nn.Identity(), process, predicts, (2,), precondition=precondition, data_std=0.5)
    snr, at = (2 * process.log_snr(t)).exp(), t.clone().requires_grad_(True)
    (slope,) = torch.autograd.grad(process.log_snr(at).sum() * 2, at)
    wanted: Tensor = {
        "1": torch.ones_like(t),
        "max(SNR, 1)": snr.clamp_min(1),
        "-SNR'(t) / 2": -slope * snr / 2,
        "1 / (1 + SNR)": 1 / (1 + snr),
        "-(log SNR)'(t) sigmoid(-1 - log SNR)": -slope / (1 + torch.e * snr),
    }[expected]
    found = weighting(name, **options)(process, t) * model.own_error(t)
    of = predicts if precondition == "none" else "EDM network"
    about = f"weight of the squared error of {of} against {expected}, cosine process"
    return tolerance(float((found / wanted - 1).abs().max()), 1e-12, about, "largest relative difference")


CLAIMS = (
    slow("importance", "the bound's gradient varies less than with uniform times",
         arms(_scatter, True, False, "times drawn uniformly",
              f"the variational bound; {ABOUT_PLANE} before; {BATCHES} batches of {BATCH}, 64 bins",
              unit="total variance of the gradient")),
    Claim("importance", "keeps the mean of any function of the noise level", _unbiased),
    *(slow("hybrid-vlb", f"teaches a variance nearer to the optimal one than the {bound} bound",
           arms(_error, "learned", bound, f"the {bound} bound",
                f"{objectives.ABOUT_CHAIN}; log(alpha / sigma) from -2 to 2.5",
                unit="error of the log-variance against the exact optimum")) for bound in ("lower", "upper")),
    slow("multiscale", "learns the coarse content of pictures better at equal steps",
         _against_pixels(_coarse, "held-out digits averaged to 2x2, log(alpha / sigma) from -3 to 1", "error of x0")),
    slow("multiscale", "samples digits better at equal steps",
         _against_pixels(_distance, "dpmpp-2m, 10 evaluations, 1000 samples", "Frechet distance in pixels")),
    *(slow(name, f"{sentence} than the constant weight",
           arms(figure, name, "constant", "constant weight on eps", about, unit=unit))
      for name in ("debiased", "min-snr")
      for sentence, figure, about, unit in (
          ("samples a mixture better in 5 evaluations",
           lambda arm, s: objectives.few_step_distance(plane(arm, s), mixture(PROCESS), s),
           f"{ABOUT_PLANE}; dpmpp-2m, 5 evaluations, 4096 samples", "sliced Wasserstein distance"),
          ("knows the mean of a mixture better in large noise",
           lambda arm, s: objectives.large_noise_error(plane(arm, s), mixture(PROCESS), s),
           f"{ABOUT_PLANE}; log(alpha / sigma) from -4 to -2", "error of x0 against the exact mean"),
          ("samples digits better in 5 evaluations", lambda arm, s: objectives.digits_distance(digits(arm, s), s),
           f"{objectives.ABOUT_DIGITS}; dpmpp-2m, 5 evaluations, 1000 samples", "Frechet distance in pixels"),
          ("knows held-out digits better in large noise",
           lambda arm, s: objectives.digits_x0_error(digits(arm, s), s, (-2.0, -4.0)),
           f"{objectives.ABOUT_DIGITS}; held-out digits, log(alpha / sigma) from -4 to -2", "error of x0"),
      )),
    *(Claim(name, f"is the paper's weight: {expected}", _stated(name, kind, expected, precondition, options))
      for name, kind, expected, precondition, options in (
          ("uniform-weighting", "v", "1", "none", {"kind": "v"}),
          ("snr-weighting", "x0", "max(SNR, 1)", "none", {}),
          ("elbo-weighting", "x0", "-SNR'(t) / 2", "none", {}),
          ("p2", "eps", "1 / (1 + SNR)", "none", {}),
          ("edm-weighting", "x0", "1", "edm", {}),
          ("sigmoid-weighting", "eps", "-(log SNR)'(t) sigmoid(-1 - log SNR)", "none", {}),
      )),
)  # fmt: skip
