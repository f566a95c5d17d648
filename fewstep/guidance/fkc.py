"""Feynman-Kac correctors: a composition of models sampled from the law that it stands for."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from itertools import pairwise

import torch
from torch import Tensor

from fewstep.core.methods import Method
from fewstep.core.ops import one_level
from fewstep.core.plan import Plan
from fewstep.core.prediction import Prediction, conversion
from fewstep.guidance.swarm import Steering, Swarm

METHODS = (
    Method(
        "fkc",
        kind="steering",
        paper="Feynman-Kac Correctors in Diffusion: Annealing, Guidance, and Product of Experts (Skreta et al., 2025)",
        arxiv="2503.02819",
        claim="guided, annealed and multiplied models sampled from the law they name, not only by its scores",
        use="Corrected",
    ),
)

# Rates of a group, in units of `((sum beta)^2 + sum |beta|)` for each number of a sample: 0.1 to 2 where the states are
# as noisy as the times say, over 100 where a step threw them out.
MOST = 20.0


class Corrected(Steering):
    """For a model whose `eps = sum_i beta_i eps_i`, samples of `prod_i p_i(x0)^beta_i` (Skreta et al., 2503.02819).

    In `y = x / alpha` every Gaussian process is the heat flow of the variance `v = (sigma / alpha)^2`, under which
    `prod p_i^beta_i` does not follow the simulated SDE. The difference of the two rates of change is
    `(|sum beta_i s_i|^2 - sum beta_i |s_i|^2) / 2` for each unit of -v, with the scores `s_i = -eps_i / sqrt(v)`, so

        d log w / d lambda = |sum beta_i eps_i|^2 - sum beta_i |eps_i|^2,      lambda = log(alpha / sigma)

    for every process and any amount of noise (the rate has no eta). It is summed by the trapezoid rule over the plan's
    evaluations. Towards the clean end it falls as sigma^2, and towards pure noise as alpha^2 where `sum beta_i` is 1:
    the first and last stretch, where lambda is infinite, are half the rate at their finite end.

    At the first time `prod p_i^beta_i` is a Gaussian of variance `sigma^2 / sum beta_i`, where the particles start; its
    integral counts in `log_normaliser`, which is that of `integral prod p_i(x0)^beta_i dx0`. To learn the weights the
    first row is asked once more, before the run.

    The model says what it is made of by `terms(x, t, memory, condition)`: the weights beta and the answers.

    Raises:
        ValueError: a model that is no composition, weights that change during the run or whose sum is not above 0,
            times that rise, a start from pure noise where the weights do not sum to 1, a plan with bands; weights that
            collapse.
    """

    scores = False

    def check(self, plan: Plan) -> None:
        one_level(plan.start[1])
        self._levels(plan)

    def _levels(self, plan: Plan) -> list[float]:
        """The log-SNR of each evaluation."""
        levels = [_log_snr(one_level(op.scales[0]), one_level(op.scales[1])) for op in plan.evaluations]
        if any(b < a for a, b in pairwise(levels)):
            raise ValueError(
                f"fkc needs noise levels that fall from one evaluation to the next; {plan.name!r} goes back"
            )
        return levels

    def start(self, swarm: Swarm, x: Tensor) -> Tensor:
        first, plan = swarm.plan.evaluations[0], swarm.plan
        t = torch.tensor(first.t, dtype=x.dtype, device=x.device)
        given = {name: torch.full((1,), value, dtype=x.dtype, device=x.device) for name, value in first.given}
        betas, _ = _terms(swarm, x[:1], t, {name: v[:1] for name, v in swarm.condition.items()} | given, False)
        total = _total(betas)
        if not total > 0:
            raise ValueError(f"fkc needs weights with a sum above 0, since they start at noise of it, got {total:g}")
        swarm.once("betas", lambda: betas)
        if total == 1:
            return x
        alpha, sigma = one_level(plan.start[0]), one_level(plan.start[1])
        if alpha == 0:
            raise ValueError(
                f"weights that sum to {total:g} have no normaliser at pure noise: start a little later, where alpha > 0"
            )
        size, end = x[0].numel(), swarm.model.process.alpha(plan.times[-1])
        log = (1 - total) / 2 * math.log(2 * math.pi * (sigma * end / alpha) ** 2) - math.log(total) / 2
        swarm.log_normaliser = swarm.log_normaliser + size * log
        return x / math.sqrt(total)

    def answer(self, swarm: Swarm, x: Tensor, t: Tensor, condition: Mapping[str, Tensor]) -> Prediction:
        betas, answers = _terms(swarm, x, t, condition, True)
        if betas != swarm.once("betas", lambda: betas):
            raise ValueError("fkc needs weights that stay the same during a run: the law that they name would change")
        kind, scales = answers[0].kind, [one_level(n) for n in swarm.plan.evaluations[swarm.number - 1].scales]
        # Each answer is `P x + Q eps_i`, so the weighted sum counts P x sum(beta) times instead of once.
        value = _weighted(betas, [answer.to(kind) for answer in answers])
        if (rest := 1 - _total(betas)) != 0:
            value = value + rest * conversion("eps", kind, *scales)[0] * x
        parts = [answer.eps.double().flatten(1) for answer in answers]
        rate = _weighted(betas, parts).square().sum(1) - _weighted(betas, [eps.square().sum(1) for eps in parts])
        swarm.kept["now"] = rate
        most = MOST * (_total(betas) ** 2 + sum(map(abs, betas))) * x[0].numel()
        fair = rate.abs().view_as(swarm.log_weights).mean(1) <= most
        message = f"the weights collapsed at evaluation {swarm.number}: take more steps, or ddpm"
        swarm.forbid(message, ~fair & value.flatten().sum().isfinite())
        return answers[0].replaced(value, x=x, t=t)

    def weigh(self, swarm: Swarm, answer: Prediction) -> Tensor | None:
        rate, before = swarm.kept.pop("now"), swarm.kept.get("rate")
        swarm.kept["rate"] = rate
        levels, i = swarm.once("levels", self._levels, swarm.plan), swarm.number - 1
        if before is None or math.isinf(levels[i]):
            return None
        if math.isinf(levels[i - 1]):  # from pure noise, on which all agree
            return rate / 2
        return (levels[i] - levels[i - 1]) / 2 * (before + rate)

    def end(self, swarm: Swarm, samples: Tensor) -> Tensor | None:
        process, t = swarm.model.process, swarm.plan.times[-1]
        left = _log_snr(process.alpha(t), process.sigma(t)) - swarm.once("levels", self._levels, swarm.plan)[-1]
        return swarm.kept["rate"] * (-math.expm1(-2 * left) / 2)


def _log_snr(alpha: float, sigma: float) -> float:
    if alpha > 0 and sigma > 0:
        return math.log(alpha / sigma)
    return math.inf if alpha > 0 else -math.inf


def _total(betas: Sequence[float]) -> float:
    """The sum of the weights, 1 where it is that but for rounding."""
    total = math.fsum(betas)
    return 1.0 if abs(total - 1) < 1e-12 else total


def _weighted(betas: Sequence[float], values: Sequence[Tensor]) -> Tensor:
    """`sum beta value`, in the values' dtype; with the weights (1,) it is the value, bit for bit."""
    total = values[0] if betas[0] == 1 else betas[0] * values[0]
    for beta, value in zip(betas[1:], values[1:], strict=True):
        total = total + beta * value
    return total


def _terms(
    swarm: Swarm, x: Tensor, t: Tensor, condition: Mapping[str, Tensor], remembered: bool
) -> tuple[tuple[float, ...], list[Prediction]]:
    """The weights and the answers of a composition; `ValueError` for a model that is none."""
    terms = getattr(swarm.model, "terms", None)
    if terms is None:
        raise ValueError(
            f"fkc corrects a composition of models, and {type(swarm.model).__name__} is none: take a model guided by"
            " 'cfg', 'compose' or 'power'"
        )
    betas, answers = terms(x, t, swarm.memory if remembered else None, dict(condition))
    return tuple(map(float, betas)), answers
