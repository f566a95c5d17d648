"""Claims of fewstep/sampling/interpolant_sde.py."""

from __future__ import annotations

from claims.between import DATA, FLOOR, OTHER, between, distance, learned
from claims.common import F64, Claim, Outcome, arms, experiment, plan


@experiment
def _law(seed: int, epsilon: float) -> Outcome:
    model, n = between("linear", "quadratic"), 2048
    floor = max(distance(DATA.sample(n, seed + i), seed) for i in range(1, 6))
    made = plan(model.process, "interpolant-sde", 100, "uniform", epsilon=epsilon)
    ours = distance(made(model, OTHER.sample(n, seed + 9), seed=seed, dtype=F64), seed)
    about = f"epsilon = {epsilon:g} gamma^2, quadratic latent, 100 even steps, {n} samples, exact fields"
    return Outcome(ours, 1.5 * floor, FLOOR, about, unit="sliced Wasserstein distance")


def _learned(seed: int) -> Outcome:
    """The same network, once with the diffusion and once without."""

    def figure(c: float, s: int) -> float:
        model, x1 = learned(s, 800), OTHER.sample(2048, s + 9)
        return distance(
            plan(model.process, "interpolant-sde", 50, "uniform", epsilon=c)(model, x1, seed=s, dtype=F64), s
        )

    about = "epsilon = 2 gamma^2, brownian latent, 50 evaluations, mlp of width 48 after 800 steps, 2048 samples"
    return arms(seed, figure, 2.0, 0.0, "epsilon = 0, 50 evaluations", about, unit="sliced Wasserstein distance")


CLAIMS = (
    *(Claim("interpolant-sde", f"keeps the law at epsilon = {c:g} gamma^2", _law(c), quick=False)
      for c in (0.0, 1.0, 5.0)),
    Claim("interpolant-sde", "makes up for a learned field's errors by its diffusion", _learned, quick=False),
)  # fmt: skip
