"""Fine-tuning by the gradient of a reward on samples, back through the sampler into the weights."""

from __future__ import annotations

import copy
import itertools
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from fewstep.core.denoiser import Denoiser
from fewstep.core.errors import suggest
from fewstep.core.methods import Method
from fewstep.core.noise import Noise
from fewstep.core.plan import Plan
from fewstep.core.prediction import coefficients, expand, scales
from fewstep.metrics.rewards import Reward
from fewstep.training.noise_levels import FURTHEST
from fewstep.training.players import Moment, Player, optimise

METHODS = (
    Method(
        "draft",
        kind="tuner",
        paper="Directly Fine-Tuning Diffusion Models on Differentiable Rewards (Clark et al., 2023)",
        arxiv="2309.17400",
        claim="a reward's gradient through all or the last steps of a plan; a verifier decides when to stop",
        use="tune",
    ),
)

WAYS = ("full", "truncated", "renoised", "adjoint")

# (count, generator) to the conditions of that many samples.
Conditions = Callable[[int, torch.Generator], Mapping[str, Any]]


def fixed_or_drawn(conditions: Conditions | Mapping[str, Any] | None) -> Conditions:
    """The conditions given to `tune` as a function that draws them."""
    if callable(conditions):
        return conditions
    fixed = dict(conditions or {})
    return lambda count, generator: fixed


def reward_samples(
    model: Denoiser,
    noise: Tensor,
    plan: Plan,
    method: str = "truncated",
    last: int = 1,
    *,
    segment: int | None = None,
    seed: int = 0,
    first: int = 0,
    **condition: Any,
) -> Tensor:
    """Samples `(B, *shape)` of a plan in the process's coordinates, with a gradient in the weights.

        method      gradient                                                    activations kept
        full        exact, through every evaluation                             the square root of the plan's
        truncated   through only the last `last` evaluations (DRaFT-K)          the square root of `last`
        renoised    of x0 predicted at samples noised again, to the time of     one evaluation's
                    one of the last `last` evaluations (DRaFT-LV; ReFL)
        adjoint     of the ODE on the plan's grid, by the adjoint equation      one evaluation's

    "renoised" draws a time for each sample, and returns the predictions instead of the samples. "adjoint" samples by
    the midpoint rule, whatever the plan's solver is. segment: evaluations that are kept at once ("full", "truncated").

    Raises:
        ValueError: another method, `last` below 1 or above the plan's evaluations; as `checkpointed`.
    """
    from fewstep.sampling.adjoint import sample_with_gradient
    from fewstep.sampling.checkpointed import checkpointed

    if method not in WAYS:
        raise suggest("way to the gradient", method, WAYS)
    if method == "full":
        return checkpointed(plan, model, noise, segment=segment, seed=seed, first=first, **condition)
    if method == "adjoint":
        return sample_with_gradient(
            model, noise, len(plan.times) - 1, "adjoint", timesteps=plan.times, seed=seed, first=first, **condition
        )
    if not 1 <= last <= plan.nfe:
        raise ValueError(f"the gradient passes through 1 to {plan.nfe} evaluations of this plan, got last={last}")
    if method == "truncated":
        return checkpointed(plan, model, noise, segment=segment, last=last, seed=seed, first=first, **condition)
    x0 = plan(model, noise, seed=seed, first=first, dtype=noise.dtype, **condition)
    source, shape = Noise(seed, first), tuple(noise.shape)
    times = torch.tensor([op.t for op in plan.evaluations[-last:]], dtype=torch.float64, device=noise.device)
    # Draws of the samples' own stream, far from those of the plan's steps.
    uniform = torch.special.ndtr(source.normal(-1, (shape[0], 1), noise.device, torch.float64)[:, 0])
    t = times[(uniform * last).long().clamp(max=last - 1)]
    eps = source.normal(-2, shape, noise.device, noise.dtype)
    x = expand(model.process.alpha(t), x0) * x0 + expand(model.process.sigma(t), x0) * eps
    return model(x, t.to(x.dtype), **model.check_condition(condition, shape[0], noise.device)).x0


def path_divergence(
    model: Denoiser, base: Denoiser, x0: Tensor, eps: Tensor, u: Tensor, plan: Plan, **condition: Tensor
) -> Tensor:
    """An estimate of how far a model's reverse SDE is from another's: `(B,)`, in nats.

    By Girsanov's theorem the divergence KL(model's paths | base's paths) of `dx = (f x - g^2 score) dt + g dw` is the
    integral of `g^2 / 2 |score difference|^2` over time, and `g^2 = -2 sigma^2 d(log-SNR)/dt` makes that the integral
    of E|eps difference|^2 over the log-SNR, from the plan's first time to its last (at most +-10). It bounds the
    divergence of the samples from above.

    Args:
        x0: the model's samples `(B, *shape)`; eps: standard normals; u: `(B,)` uniform in [0, 1], the log-SNRs.
    """
    process = model.process
    ends = [min(max(process.log_snr(t), -FURTHEST), FURTHEST) for t in (plan.times[0], plan.times[-1])]
    t = process.time(ends[0] + (ends[1] - ends[0]) * u.double())
    x = expand(process.alpha(t), x0) * x0 + expand(process.sigma(t), x0) * eps
    now = model(x, t.to(x.dtype), **condition)
    with torch.no_grad():
        before = base(x, t.to(x.dtype), **condition)
    alpha, sigma, dalpha, dsigma = scales(process, t)
    a, b = coefficients(now.kind, alpha, sigma, dalpha, dsigma)
    # An error of a x0 + b eps at a known state is (b - a sigma / alpha) times that of eps.
    per_eps = (alpha / (b * alpha - a * sigma)).square()
    squared = (now.value - before.to(now.kind)).square().flatten(1).sum(1)
    return (ends[1] - ends[0]) * per_eps.to(squared) * squared


@dataclass(frozen=True)
class Check:
    """The result on fresh noises after some number of steps: the mean reward and the verifier's mean score (the
    reward's own where there is no other)."""

    step: int
    reward: float
    verified: float


@dataclass(frozen=True)
class Tuned:
    """The model, the mean reward and the divergence (0 where it is not used) at each step, and the checks.

    `best` is the check whose weights the model has; `stopped` whether the verifier ended the run.
    """

    model: Denoiser
    rewards: list[float]
    divergences: list[float]
    checks: list[Check]
    best: Check
    stopped: bool


def tune(
    model: Denoiser,
    reward: Reward,
    plan: Plan | Sequence[Plan],
    *,
    steps: int,
    batch: int = 64,
    lr: float = 1e-3,
    method: str = "truncated",
    last: int = 1,
    segment: int | None = None,
    parameters: Sequence[nn.Parameter] | None = None,
    conditions: Conditions | Mapping[str, Any] | None = None,
    keep: float = 0.0,
    penalty: Callable[[Mapping[str, Tensor]], Tensor] | None = None,
    verify: Reward | None = None,
    checked: Plan | None = None,
    every: int = 10,
    patience: int = 3,
    fresh: int = 128,
    clip: float = 1.0,
    seed: int = 0,
    watch: Callable[[int, Tensor], Any] | None = None,
) -> Tuned:
    """Raises the expected reward of a model's samples, in place; ends with the weights that were verified best.

    Minimises `-reward + keep * KL(paths | the base's paths) + penalty` by AdamW (no weight decay). The samples of every
    step are new: noise and conditions follow from `seed`, and are never those of the checks.

    A reward that is optimised can be exploited. So every `every` steps `verify` scores samples of noises that are
    never tuned on; after `patience` checks without a better score the run ends, and the best checked weights come back.

    Args:
        reward: `reward(x, **condition) -> (B,)` of samples as data (`model.decode`), differentiable in x.
        plan: the plan that is sampled; several share the steps equally, one after another.
        method, last, segment: how gradients reach the weights, as in `reward_samples`.
        parameters: those to train; by default all that require gradients.
        conditions: the same for all, or `(count, generator) -> conditions`.
        keep: weight of the divergence from the original model, in rewards per nat (`path_divergence`). A truncated
            gradient understates the reward's part, not the divergence's, and needs a smaller weight.
        penalty: of the step's conditions, a number to add.
        verify: `verify(x, **condition) -> (B,)`; by default the reward itself, which never ends the run. checked: the
            plan that checks sample, by default the last. fresh: samples per check.
        watch: called with the step and its rewards (B,).

    Raises:
        ValueError: counts below 1, nothing to train, no plan; as `reward_samples`.
        FloatingPointError: a loss that is not finite, at the end.
    """
    if min(steps, batch, every, patience, fresh) < 1:
        raise ValueError(
            f"steps, batch, every, patience and fresh must be at least 1, got {steps}, {batch}, {every}, {patience}"
            f" and {fresh}"
        )
    plans = [plan] if isinstance(plan, Plan) else list(plan)
    trained = [p for p in (parameters if parameters is not None else model.parameters()) if p.requires_grad]
    if not plans or not trained:
        raise ValueError("tuning needs a plan" if not plans else "no parameter to train asks for gradients")
    if model.shape is None:
        raise ValueError("this denoiser takes any shape: tuning needs one that has its own")
    model.eval()
    base = copy.deepcopy(model).requires_grad_(False) if keep else None
    draw = fixed_or_drawn(conditions)
    device, process = trained[0].device, model.process
    source, numbers = Noise(seed), itertools.count()
    # The checks' samples come after all those tuned on.
    held, held_named = steps * batch, dict(draw(fresh, torch.Generator().manual_seed(seed + 1)))
    rewards, divergences, checks = torch.zeros(steps), torch.zeros(steps), list[Check]()
    best: list[tuple[Check, list[Tensor]]] = []  # one, once there is a check
    scores: list[Tensor] = []  # of the current step

    def start(first: int, count: int) -> Tensor:
        own = Noise(seed, first)
        shape = (count, *(model.shape or ()))
        return process.start(lambda number: own.normal(number, shape, device))

    def stalled() -> bool:
        return verify is not None and len(checks) - 1 - checks.index(best[0][0]) >= patience

    @torch.no_grad()
    def check(step: int) -> None:
        """Scores fresh samples, and keeps the weights if they are the best so far."""
        named = model.check_condition(held_named, fresh, device)
        x = model.decode((checked or plans[-1])(model, start(held, fresh), seed=seed, first=held, **named), **named)
        score = float(reward(x, **named).mean())
        checks.append(Check(step, score, float(verify(x, **named).double().mean()) if verify is not None else score))
        if not best or checks[-1].verified > best[0][0].verified:
            best[:] = [(checks[-1], [p.detach().clone() for p in trained])]

    def conditions_of(count: int, generator: torch.Generator) -> tuple[int, dict[str, Tensor], Tensor | None]:
        named = model.check_condition(dict(draw(count, generator)), count, device)
        u = None if base is None else torch.rand(count, generator=generator, dtype=torch.float64).to(device)
        return next(numbers), named, u

    def loss(drawn: tuple[int, dict[str, Tensor], Tensor | None]) -> Tensor:
        step, named, u = drawn
        first, current = step * batch, plans[step * len(plans) // steps]
        x0 = reward_samples(
            model,
            start(first, batch),
            current,
            method,
            min(last, current.nfe),
            segment=segment,
            seed=seed,
            first=first,
            **named,
        )
        scores.append(reward(model.decode(x0, **named), **named))
        total = -scores[-1].mean()
        if base is not None and u is not None:
            eps = source.normal(-3 - step, tuple(x0.shape), device)
            divergence = path_divergence(model, base, x0.detach(), eps, u, current, **named).mean()
            divergences[step], total = divergence.detach(), total + keep * divergence
        return total if penalty is None else total + penalty(named)

    def watched(moment: Moment) -> bool:
        done, found = moment.step + 1, scores.pop().detach()
        rewards[moment.step] = found.mean()
        if watch is not None:
            watch(moment.step, found)
        if done % every == 0 or done == steps:
            check(done)
            return stalled()
        return False

    player = Player(model, loss, parameters=trained, lr=lr, clip=clip)
    check(0)
    optimise(
        {"model": player},
        conditions_of,
        steps=steps,
        batch=batch,
        seed=torch.Generator().manual_seed(seed),
        watch=watched,
    )
    (found, weights), taken = best[0], checks[-1].step
    with torch.no_grad():
        for parameter, kept in zip(trained, weights, strict=True):
            parameter.copy_(kept)
    return Tuned(model, rewards[:taken].tolist(), divergences[:taken].tolist(), checks, found, stalled())
