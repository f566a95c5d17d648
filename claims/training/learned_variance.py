"""Claims of fewstep/training/learned_variance.py."""

from __future__ import annotations

import torch

from claims.common import F64, Claim, Outcome, arms, experiment
from claims.objectives import PROCESS
from claims.problems import mixture
from claims.variances import ABOUT, CHAIN, learned
from fewstep.denoisers.learned_variance import reverse_step
from fewstep.training.learned_variance import earlier


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
    made = reverse_step(PROCESS, t, earlier(PROCESS, t, CHAIN))
    best, span = torch.log1p(made.gap[:, None] * left), made.span[:, None].expand_as(x)
    with torch.no_grad():
        found = learned(seed)(x.float(), t).fraction.double() * span
    values = {"learned": found, "lower": torch.zeros_like(span), "upper": span}
    return float((values[said] - best).square().mean().sqrt())


@experiment
def _matches(seed: int, bound: str) -> Outcome:
    about, unit = f"{ABOUT}; log(alpha / sigma) from -2 to 2.5", "error of the log-variance against the exact optimum"
    return arms(seed, _error, "learned", bound, f"the {bound} bound", about, unit=unit)


CLAIMS = tuple(
    Claim("hybrid-vlb", f"teaches a variance nearer to the optimal one than the {bound} bound",
          _matches(bound), quick=False)
    for bound in ("lower", "upper")
)  # fmt: skip
