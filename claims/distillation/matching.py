"""Claims of distribution matching: on points of the plane, with exact teachers, at equal evaluations on both sides.

An evaluation is a forward pass of one sample by any of the networks or the teacher; with its backward pass it is 3.
Students and fake scores are perceptrons that have not been trained before, save for `disback`.
"""

from __future__ import annotations

import copy
import functools
import math
from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch import Tensor

from claims.common import (
    EDM,
    F64,
    SLICED,
    Claim,
    Denoiser,
    GaussianMixture,
    Noise,
    Outcome,
    Run,
    arms,
    gap,
    plan,
    sliced,
    slow,
    tolerance,
)  # fmt: skip
from claims.distillation.consistency import BIASES, Biased
from claims.problems import fine, mixture
from claims.trained import MLP, NetworkDenoiser, NoiseLevels, fit, fresh
from fewstep.core.methods import made
from fewstep.core.student import default_start
from fewstep.data.dataset import Dataset, DataSpec
from fewstep.denoisers.dataset import DatasetDenoiser
from fewstep.denoisers.gaussian_map import GaussianMap
from fewstep.distillation.distribution_matching import DiffInstruct
from fewstep.distillation.method import Batch, Distiller, Setting
from fewstep.training.players import optimise

PROCESS = EDM()
BUDGET, LONG = 600_000, 1_200_000  # evaluations of a run
BATCH, RATE, TRIAL = 128, 2e-3, 40  # samples of an iteration, its rate, iterations by which its cost is found
N, TRUTH = 2048, 1000  # samples that are judged; what is added to the seeds of exact ones
GAN = {"gan": 0.1, "classify": 0.1}
SIGMA = 0.2  # of the diffused laws whose Fisher divergence is taken
STEPS, AWAY, NEAR, CHECKS = 1000, 2.0, 0.1, 40  # of disback: its teacher's training, its student's start, its finish
PERCEPTRONS = "perceptrons of 32, 3 blocks"


class Arm(NamedTuple):
    """One side of a claim: a method with its options, the law of the data, the teacher's bias, the student's steps."""

    method: str
    options: tuple[tuple[str, Any], ...] = ()
    law: str = "mixture"
    bias: tuple[float, float] = (1.0, 0.0)
    steps: int = 1
    budget: int = BUDGET


def arm(method: str, law: str = "mixture", bias: str = "", steps: int = 1, budget: int = BUDGET, **options: Any) -> Arm:
    return Arm(method, tuple(sorted(options.items())), law, BIASES.get(bias, (1.0, 0.0)), steps, budget)


@functools.cache
def law(name: str) -> GaussianMixture:
    """The eight components of `claims.problems`, or two far modes of weights 0.8 and 0.2."""
    means = torch.tensor([[-1.0, 0.0], [1.0, 0.0]], dtype=F64)
    return mixture(PROCESS) if name == "mixture" else GaussianMixture(torch.tensor([0.8, 0.2]), means, 0.15**2, PROCESS)


def perceptron(seed: int, std: float) -> NetworkDenoiser:
    network = fresh(MLP, seed, width=32, depth=3)
    return NetworkDenoiser(network, PROCESS, "x0", (2,), precondition="edm", data_std=std, value_range=None)


def setting(name: str, seed: int, **more: Any) -> Setting:
    """What both sides of a claim begin with: the law's data, untrained networks from the seed."""
    raw = law(name).sample(8192, seed).float()
    std = float(raw.std())
    data = Dataset(DataSpec(name, (2,), (-math.inf, math.inf), None, len(raw)), raw)
    given: dict[str, Any] = {"base": perceptron(2 * seed, std), "fake": perceptron(2 * seed + 1, std)} | more
    start = default_start(PROCESS, std)
    return Setting(start=start, data=data, data_std=std, lr=RATE, own=True, seed=seed, **given)


def train(method: Distiller, last: int, seed: int, watch: Callable[[int], Any] = lambda step: None) -> None:
    """Iterations up to the last."""

    def draw(batch: int, generator: torch.Generator) -> Batch:
        return method.setting.mine(method.draw(batch, generator))

    def after(moment: Any) -> None:
        method.setting.step = moment.step + 1
        watch(moment.step + 1)

    optimise(method.players, draw, steps=last, batch=BATCH, seed=seed, watch=after)


def within(build: Callable[[int], Distiller], budget: int, seed: int) -> Distiller:
    """The method of `build(iterations)` with as many of these as fit into a budget of evaluations."""
    trial = build(TRIAL)
    before = trial.setting.count.evaluations
    train(trial, TRIAL, seed)
    return build(int((budget - before) / (trial.setting.count.evaluations - before) * TRIAL))


@functools.cache
def student(arm: Arm, seed: int) -> tuple[Denoiser, tuple[float, ...]]:
    """An arm's student with its averaged weights, and the times of its steps."""

    def build(iterations: int) -> Distiller:
        teacher = Biased(law(arm.law), *arm.bias)
        begun = setting(arm.law, seed, teacher=teacher, steps=arm.steps, iterations=iterations)
        # A search for the plan that makes pairs would take longer than the training.
        pairing = {"plan": plan(PROCESS, "dpmpp-3m", 10, "karras")} if arm.method == "dmd" else {}
        return made("distiller", arm.method, 1, **dict(arm.options), **pairing)(begun)

    method = within(build, arm.budget, seed)
    train(method, method.setting.iterations, seed)
    average = method.players["student"].average
    assert average is not None
    average.copy_to(method.student)
    return method.student, method.times() or ()


def noise(seed: int, n: int = N) -> Tensor:
    return Noise(seed + 100).normal(0, (n, 2))


def samples(arm: Arm, seed: int, n: int = N) -> Tensor:
    """n of an arm's student, float64; a seed has one series of noises for all arms."""
    model, times = student(arm, seed)
    made_plan = plan(PROCESS, "multistep-consistency", timesteps=[*times, PROCESS.t_zero])
    return made_plan(model, noise(seed, n), seed=seed).double()


# Figures


def distance(arm: Arm, seed: int) -> float:
    return sliced(samples(arm, seed), law(arm.law).sample(N, TRUTH + seed))


def masses(x: Tensor, truth: GaussianMixture) -> Tensor:
    """The share of the points that is nearest to each component's mean."""
    return torch.bincount(torch.cdist(x, truth.means).argmin(1), minlength=len(truth.means)) / len(x)


def off(arm: Arm, seed: int) -> float:
    """Total variation of the masses from those of many exact samples."""
    truth = law(arm.law)
    exact = masses(truth.sample(1 << 16, TRUTH + seed), truth)
    return float((masses(samples(arm, seed), truth) - exact).abs().sum() / 2)


def covered(arm: Arm, seed: int) -> float:
    """Modes that have at least half their mass."""
    truth = law(arm.law)
    return float((masses(samples(arm, seed), truth) >= truth.log_weights.exp() / 2).sum())


def fisher(arm: Arm, seed: int) -> float:
    """The Fisher divergence of the laws diffused to `SIGMA`, that of the student from 8192 samples and judged at
    others."""
    every = samples(arm, seed, 4 * N + N)
    known, x = DatasetDenoiser(every[:-N], PROCESS), every[-N:]
    x = x + SIGMA * Noise(seed + 200).normal(0, (N, 2), "cpu", F64)
    t = torch.full((N,), SIGMA, dtype=F64)
    apart = known(x, t).x0 - law(arm.law)(x, t).x0
    return float(apart.square().sum(1).mean() / SIGMA**4)


def unpaired(arm: Arm, seed: int) -> float:
    """Distance of the student's samples from where the exact flow takes the same noises, relative."""
    return gap(samples(arm, seed), fine(PROCESS)(law(arm.law), noise(seed).double(), dtype=F64))


# Backtracking: a student whose samples lie beside those of the network that it was copied from.


@functools.cache
def network(seed: int) -> NetworkDenoiser:
    begun = setting("mixture", seed, teacher=law("mixture")).base
    assert isinstance(begun, NetworkDenoiser)
    data, levels = law("mixture").sample(20_000, seed).float(), NoiseLevels(PROCESS, "log-normal", -1.2, 1.2)
    return fit(begun, data, steps=STEPS, batch=256, lr=RATE, levels=levels, seed=seed)


@functools.cache
def convergence(name: str, seed: int) -> tuple[float, float]:
    """Evaluations until the student's sliced distance is below `NEAR`, or all of them; and the mean squared difference
    of the fake's answer and the teacher's in the first tenth of the student's turns."""
    teacher, truth, gaps = network(seed), law("mixture").sample(N, TRUTH + seed), []

    def build(iterations: int) -> Distiller:
        beside = copy.deepcopy(teacher)
        begun = setting("mixture", seed, teacher=teacher, base=beside, fake=teacher, iterations=iterations)
        with torch.no_grad():
            beside.network.last.bias += AWAY / begun.data_std
        return made("distiller", name, 1)(begun)

    method = within(build, LONG, seed)
    inner, reached = getattr(method, "inner", method), [math.inf]
    answers = inner.answers

    def told(x: Tensor, drawn: Batch) -> tuple[Tensor, Tensor]:
        fake, real = answers(x, drawn)
        gaps.append(float((fake - real).square().sum(1).mean()))
        return fake, real

    def watch(step: int) -> None:
        if step % (method.setting.iterations // CHECKS) == 0 and math.isinf(reached[0]):
            with torch.no_grad():
                start = method.setting.times(method.setting.start, N)
                x = method.student(method.setting.begin(noise(seed)), start).x0.double()
            if sliced(x, truth) < NEAR:
                reached[0] = method.setting.count.evaluations

    inner.answers = told
    train(method, method.setting.iterations, seed, watch)
    return min(reached[0], float(LONG)), sum(gaps[: len(gaps) // 10]) / (len(gaps) // 10)


# Rows


def about(one: Arm, what: str = "") -> str:
    where = "8-component mixture" if one.law == "mixture" else "two far modes of weights 0.8 and 0.2"
    return f"{where}, {PERCEPTRONS}, {one.budget:,} evaluations{f', {what}' if what else ''}; {N} samples"


def row(figure: Callable[[Any, int], float], ours: Arm, theirs: Arm, against: str, unit: str, what: str = "",
        better: str = "low") -> Run:  # fmt: skip
    return arms(figure, ours, theirs, against, about(ours, what), better, unit)


def _kl(seed: int) -> Outcome:
    """The gradient of the loss in the student's moments against that of the KL divergence of diffused Gaussians."""
    generator = torch.Generator().manual_seed(seed)
    mean, other = (0.5 * torch.randn(1, generator=generator, dtype=F64) for _ in range(2))
    start = torch.tensor([3.0], dtype=F64)
    made_of = [GaussianMap(m, c, PROCESS, kind) for m, c, kind in ((mean, 0.5, "jump"), (other, 0.3, "denoiser"))]
    moved, teacher = made_of
    at = moved(torch.tensor([[0.0], [3.0]], dtype=F64), start).x0.flatten()  # mu and mu + S
    mu, root = at[0], at[1] - at[0]
    fake = GaussianMap(mu.detach()[None], float(root.detach()) ** 2, PROCESS, "denoiser")
    begun = Setting(teacher, moved, 3.0, own=True, fake=fake, data_std=1.0)
    nodes = torch.tensor([-(3**0.5), 0.0, 3**0.5], dtype=F64)  # Gauss and Hermite's, weights 1/6, 2/3, 1/6
    z, eps = (part.reshape(-1, 1) for part in torch.meshgrid(nodes, nodes, indexing="ij"))
    mass = torch.outer(*[torch.tensor([1 / 6, 2 / 3, 1 / 6], dtype=F64)] * 2).flatten()
    worst = 0.0
    for sigma in (0.1, 0.5, 2.0):
        t = torch.full((9,), sigma, dtype=F64)
        drawn: Batch = {"z": z[:, None], "place": 0, "eps": eps, "t": t, "condition": {}}
        method = DiffInstruct(begun)
        loss = (mass * method.loss(method.samples(drawn), drawn)).sum()
        p, q = 0.3 + sigma**2, root**2 + sigma**2
        kl = (q / p - 1 + (mu - other[0]) ** 2 / p + math.log(p) - q.log()) / 2
        found, exact = (torch.autograd.grad(one, list(moved.parameters()), retain_graph=True) for one in (loss, kl))
        worst = max(worst, *(float((a / sigma**2 - b).abs().max()) for a, b in zip(found, exact, strict=True)))
    return tolerance(worst, 1e-9, "Gaussians, exact scores, quadrature; levels 0.1, 0.5 and 2")


MASS, FISHER = "total variation of mode masses", f"Fisher divergence at sigma {SIGMA}"
FIVE, ONE = arm("dmd2", gan=0.0, ratio=5), arm("dmd2", gan=0.0, ratio=1)
FOUR, NOISED = (arm("dmd2", steps=4, gan=0.0, simulate=simulate) for simulate in (True, False))
JUDGED, PLAIN = (
    {bias: arm("dmd2", bias=bias, **options) for bias in BIASES} for options in (GAN, {"gan": 0.0})
)  # fmt: skip
RKL, FKL, JS = (arm("f-distill", law="far", divergence=name, **GAN) for name in ("rkl", "fkl", "js"))
DI, SID, SIM = (arm(name, budget=LONG) for name in ("diff-instruct", "sid", "sim"))
HELD, FREE = (arm("dmd", pairs=4096, weight=weight) for weight in (0.25, 0.0))


def _back(which: int, unit: str) -> Run:
    what = f"8-component mixture, {PERCEPTRONS}, student {AWAY:g} beside its teacher, {LONG:,} evaluations"
    return arms(lambda name, seed: convergence(name, seed)[which], "disback", "diff-instruct", "diff-instruct", what,
                unit=unit)  # fmt: skip


CLAIMS = (
    Claim("diff-instruct", "its gradient is that of the KL divergence of the diffused laws", _kl),
    slow("dmd", "its regression keeps the pairing of noise and sample",
         row(unpaired, HELD, FREE, "without it", "relative end point error")),
    slow("dmd2", "five turns of the fake score serve better than one", row(distance, FIVE, ONE, "ratio 1", SLICED)),
    slow("dmd2", "five turns of the fake score keep the modes' masses better", row(off, FIVE, ONE, "ratio 1", MASS)),
    slow("dmd2", "real samples mend a teacher whose score is too small",
         row(distance, JUDGED["scaled"], PLAIN["scaled"], "no discriminator", SLICED, "score times 0.9")),
    slow("dmd2", "real samples mend a teacher whose score has a field too many",
         row(distance, JUDGED["field"], PLAIN["field"], "no discriminator", SLICED, "a smooth field in the score")),
    slow("dmd2", "four steps learn on their own inputs",
         row(distance, FOUR, NOISED, "inputs from noised data", SLICED, "4 steps")),
    slow("f-distill", "forward KL keeps the masses of far modes", row(off, FKL, RKL, "reverse KL", MASS)),
    slow("f-distill", "Jensen-Shannon keeps the masses of far modes", row(off, JS, RKL, "reverse KL", MASS)),
    slow("f-distill", "forward KL covers more far modes",
         row(covered, FKL, RKL, "reverse KL", "modes with half their mass", better="high")),
    slow("f-distill", "Jensen-Shannon covers more far modes",
         row(covered, JS, RKL, "reverse KL", "modes with half their mass", better="high")),
    slow("sid", "is nearer in scores than the KL gradient", row(fisher, SID, DI, "diff-instruct", FISHER)),
    slow("sid", "is nearer in samples than the KL gradient", row(distance, SID, DI, "diff-instruct", SLICED)),
    slow("sim", "is nearer in scores than the gradient of KL", row(fisher, SIM, DI, "diff-instruct", FISHER)),
    slow("sim", "is nearer in samples than the gradient of KL", row(distance, SIM, DI, "diff-instruct", SLICED)),
    slow("disback", "a path of teachers brings a student from off the support sooner",
         _back(0, f"evaluations to a {SLICED} of {NEAR}")),
    slow("disback", "a path of teachers begins with a smaller gap of the two answers",
         _back(1, "squared difference, first tenth of the turns")),
)  # fmt: skip
