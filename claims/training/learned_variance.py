"""Claims of fewstep/training/learned_variance.py."""

from __future__ import annotations

import torch

from claims.claim import Claim, Outcome, over_seeds
from claims.objectives import PROCESS, SEEDS
from claims.problems import mixture
from claims.variances import ABOUT, CHAIN, learned
from fewstep.denoisers.learned_variance import reverse_step
from fewstep.training.learned_variance import earlier


def _errors(seed: int) -> dict[str, float]:
    """Root mean square differences from the optimal log-variance, of what was learned and of both bounds."""
    truth, generator = mixture(PROCESS), torch.Generator().manual_seed(seed)
    t = PROCESS.time(torch.linspace(2.5, -2, 2000, dtype=torch.float64))
    alpha, sigma = PROCESS.alpha(t)[:, None], PROCESS.sigma(t)[:, None]
    x = alpha * truth.sample(2000, seed + 1) + sigma * torch.randn(2000, 2, generator=generator, dtype=torch.float64)
    spread = []
    for i in range(2):  # Var[x0 | x] = sigma^2 / alpha d x0 / d x, value by value
        e = torch.eye(2, dtype=torch.float64)[i].expand_as(x)
        spread.append(torch.func.jvp(lambda y: truth(y, t).x0, (x,), (e,))[1][:, i])
    left = sigma**2 / alpha * torch.stack(spread, dim=1)
    made = reverse_step(PROCESS, t, earlier(PROCESS, t, CHAIN))
    best, span = torch.log1p(made.gap[:, None] * left), made.span[:, None].expand_as(x)
    model = learned(seed)
    with torch.no_grad():
        found = model(x.float(), t).fraction.double() * span
    said = {"learned": found, "lower": torch.zeros_like(span), "upper": span}
    return {name: float((value - best).square().mean().sqrt()) for name, value in said.items()}


def _matches(bound: str) -> Outcome:
    return over_seeds(
        lambda seed: (_errors(seed)["learned"], _errors(seed)[bound]),
        SEEDS,
        f"the {bound} bound",
        f"{ABOUT}; log(alpha / sigma) from -2 to 2.5",
        unit="error of the log-variance against the exact optimum",
    )


CLAIMS = tuple(
    Claim(
        "hybrid-vlb",
        f"teaches a variance nearer to the optimal one than the {bound} bound",
        lambda seed, bound=bound: _matches(bound),
        quick=False,
    )
    for bound in ("lower", "upper")
)
