"""Claims of the processes: formulas that agree, and what a schedule does to errors at equal steps."""

from __future__ import annotations

import functools
import math
from collections.abc import Sequence
from itertools import pairwise

import torch
from torch import Tensor

from claims.bridges import largest
from claims.claim import Claim, Outcome, arms, compared, experiment, slow, tolerance
from claims.common import ENDPOINT, F64, SLICED, endpoint_error, gap, plan, sample, sliced
from claims.duels import formulas, identities, on_circle, processes
from claims.parts import Answers, GaussianMixture, Noise, Process
from claims.problems import clock, mixture, problem, smooth, wide
from fewstep.core.trace import Trace, Value
from fewstep.data.digits import load
from fewstep.denoisers.pfgmpp import PoissonDataset
from fewstep.processes.cosine import Cosine
from fewstep.processes.discrete import Discrete, zero_terminal_snr
from fewstep.processes.flow import Flow
from fewstep.processes.interpolated_cosine import InterpolatedCosine
from fewstep.processes.kinetic_optimal import KineticOptimal, energy, separation
from fewstep.processes.per_element import PerElement
from fewstep.processes.pfgmpp import PFGMpp
from fewstep.processes.shifted import Shifted
from fewstep.processes.ve import EDM, VE
from fewstep.processes.vp import VP, SubVP
from fewstep.sampling.build import solver_names
from fewstep.timesteps.grid import make_times

OTHERS = {"flow": Flow(), "cosine": Cosine(t_max=1.0), "vp": VP()}
PROBLEMS = {"8-component mixture": mixture, "mixture in 12 dimensions": wide}
ERROR = 0.3  # standard deviation of the error in eps, at every evaluation
DEGREES = (2.0, 64.0, 128.0, None)
TIMES = (0.1, 0.3, 0.5, 0.7, 0.9)
LOW, HIGH = 0.01, 50.0
EVALUATIONS = 20


def _spread(seed: int) -> Outcome:
    """Nichol and Dhariwal, section 3.2: the linear table's last quarter is almost pure noise, and wasted."""
    share = [float((p.alpha(clock(p)) ** 2 < 0.01).double().mean()) for p in (Cosine(), VP())]
    return compared(share, "VP with linear beta", "times with alpha^2 below 0.01", unit="share of the clock")


def _unit(seed: int) -> Outcome:
    process = Discrete.linear()
    t, steps = clock(process), torch.arange(1000, dtype=F64)
    unit = process.alpha(t) ** 2 + process.sigma(t) ** 2 - 1
    table = process.alpha(steps) ** 2 - torch.tensor(process.alphas_cumprod, dtype=F64)
    return identities(process, largest([unit, table]), "alpha^2 + sigma^2 against 1 and the table's values")


def _never_rounded(seed: int) -> Outcome:
    on = problem(Discrete.linear(), seed)
    made = plan(on.model.process, "dpmpp-3m", timesteps="log-snr", nfe=50)
    asked = Answers(lambda x, t: on.model(x, t.round()).eps, on.model.process, on.model.shape, "eps")
    rounded = endpoint_error(on.run(made, asked), on.reference).value
    against = "the same, the model asked at the nearest step of the table"
    about = f"dpmpp-3m, {made.nfe} evaluations, times log-snr, {on.about}"
    return Outcome(on.error(made), rounded, against, about, unit=ENDPOINT)


def _latent_table() -> Tensor:
    """The table of latent diffusion: square roots of beta linear from sqrt(0.00085) to sqrt(0.012)."""
    return torch.linspace(0.00085**0.5, 0.012**0.5, 1000, dtype=F64) ** 2


def _ends(seed: int) -> Outcome:
    table = torch.cumprod(1 - _latent_table(), 0).tolist()
    after = zero_terminal_snr(table)
    about = "the last alpha^2 against 0 and the first against its old value, the table of latent diffusion"
    return tolerance(max(abs(after[-1]), abs(after[0] - table[0])), 1e-15, about)


def _brightness(seed: int) -> Outcome:
    """Pictures of 4x4 pixels that share a brightness far from 0. Noise whose mean is 0 carries none of it."""
    d, mean, shared, own = 16, 2.0, 0.3, 0.1
    covariance = shared**2 * torch.ones(1, d, d, dtype=F64) + own**2 * torch.eye(d, dtype=F64)
    noise = Noise(seed).normal(0, (512, d), "cpu", F64)
    noise, bias = torch.cat((noise, -noise)), []  # the mean of the noise is exactly 0
    for zero_terminal in (True, False):
        process = Discrete.from_betas(_latent_table().tolist(), zero_terminal=zero_terminal)
        model = GaussianMixture(torch.ones(1), torch.full((1, d), mean, dtype=F64), covariance, process)
        samples = plan(process, "vab-3", 50, "karras")(model, noise, dtype=F64)
        bias.append(abs(float(samples.mean()) - mean))
    about = "one Gaussian, 16 pixels, mean 2, common deviation 0.3, own 0.1; vab-3, 50 evaluations,"
    about += " 1024 noises in pairs"
    return compared(bias, "the table as it was", about, unit="|mean brightness - true|")


def _resolution(seed: int) -> Outcome:
    """Averaging pictures of d pixels a side down to 64 divides the noise by d / 64."""
    worst, t = [0.0, 0.0], torch.linspace(0.05, 0.95, 19, dtype=F64)
    for d in (128, 256, 512):
        for i, process in enumerate((InterpolatedCosine(d, 64, 64), Cosine(s=0.0))):
            averaged = (process.alpha(t) / process.sigma(t) * (d / 64)).log()
            worst[i] = max(worst[i], float((averaged - Cosine(s=0.0).log_snr(t)).abs().max()))
    about = "pictures of 128, 256 and 512 pixels a side averaged to 64, 19 times"
    return compared(worst, "the schedule without a shift", about, unit="largest change of log(alpha / sigma)")


@functools.cache
def _solved(problem: str, seed: int) -> tuple[KineticOptimal, Tensor, float]:
    """From 1024 samples with two noises each."""
    model = PROBLEMS[problem](Flow())
    data = model.sample(1024, seed)
    return KineticOptimal.of(model, data, 33, 2, seed), *separation(model, data, 33, 2, seed)


def _formulas(seed: int) -> Outcome:
    process = _solved("8-component mixture", seed)[0]
    return identities(process, abs(process.alpha(0.0) - 1) + process.alpha(1.0), "the ends")


@experiment
def _energy(seed: int, problem: str, other: str) -> Outcome:
    process, speeds, rms = _solved(problem, seed)
    figures = [energy(p, speeds, rms) for p in (process, OTHERS[other])]
    about = f"{problem}, speeds from 1024 samples, root mean square {rms:.2g}"
    return compared(figures, other, about, unit="kinetic energy of the path, a value")


def euler(trace: Trace, process: Process, times: Sequence[float]) -> Value:
    x = trace.start()
    for a, b in pairwise(times):
        x = x + trace.evaluate(x, a).velocity * (b - a)
    return x


@experiment
def _euler(seed: int, other: str, steps: int) -> Outcome:
    name, n = "mixture in 12 dimensions", 2048

    def figure(process: Process, s: int) -> float:
        model, noise = wide(process), Noise(s).normal(0, (n, 12), "cpu", F64)
        x = plan(process, euler, steps, "uniform", end="min")(model, noise, dtype=F64)
        return sliced(x, model.sample(n, s + 1))

    about = f"{name}, Euler with {steps} even steps from t_max to t_min, {n} samples"
    return arms(figure, _solved(name, seed)[0], OTHERS[other], other, about, unit=SLICED)(seed)


def _parity(seed: int) -> Outcome:
    base, process = smooth(VP()), PerElement((VP(), VP()), (0, 1), (2,))
    within = Answers(lambda x, t: base(x, t).x0, process, base.shape)
    noise, worst = Noise(seed).normal(0, (8, 2), "cpu", F64), 0.0
    for name in solver_names():
        ours = plan(process, name, 5)(within, noise, seed=seed, dtype=F64)
        theirs = plan(VP(), name, 5)(base, noise, seed=seed, dtype=F64)
        worst = max(worst, float((ours - theirs).abs().max()))
    about = f"{len(solver_names())} solvers, 5 steps, 2 equal bands, smooth 5-component mixture, vp"
    return tolerance(worst, 1e-6, about, "largest difference")


def _converges(seed: int) -> Outcome:
    """Elements that do not see each other: each is a scalar run of its own process, so its exact end is known."""
    process = PerElement((VP(), VP(beta_max=12.0), VP(beta_max=25.0)), (0, 1, 2), (3,))
    variances = torch.tensor([0.01, 0.25, 4.0], dtype=F64)

    def answer(x: Tensor, t: Tensor) -> Tensor:
        alpha, sigma = process.alpha(t), process.sigma(t)
        return alpha * variances / (alpha**2 * variances + sigma**2) * x

    noise = Noise(seed).normal(0, (64, 3), "cpu", F64)
    first = torch.tensor(process.t_max, dtype=F64)
    alpha, sigma = process.alpha(first), process.sigma(first)
    exact = noise * sigma * (variances / (alpha**2 * variances + sigma**2)).sqrt()
    found = plan(process, "dpmpp-3m", 200, "log-snr")(Answers(answer, process, (3,)), noise, dtype=F64)
    about = "dpmpp-3m, 200 evaluations, three schedules, Gaussian data of variances 0.01, 0.25 and 4, 64 noises"
    return tolerance(gap(found, exact) if math.isfinite(float(found.sum())) else 1e9, 1e-3, about, ENDPOINT)


def _radius(seed: int) -> Outcome:
    """Shares of the radius in twelve bins, at three D, against the integrals of the density."""
    worst, n, size = 0.0, 20_000, 64
    edges = [3.0, 5, 6, 7, 7.5, 8, 8.5, 9, 10, 12, 20, 100]
    for degrees in (1.0, 64.0, None):
        process = PFGMpp(degrees=degrees)
        radius = process.start(lambda draw: Noise(seed).normal(draw, (n, size), "cpu", F64)).norm(dim=1)
        for low, high in pairwise(edges):
            fine = torch.linspace(low, high, 2001, dtype=F64)
            share = float(torch.trapezoid(process.log_radius_density(fine, size).exp(), fine))
            found = float(((radius >= low) & (radius < high)).double().mean())
            worst = max(worst, abs(found - share) / math.sqrt(max(share * (1 - share), 1e-4) / n))
    about = f"D = 1, 64 and infinity, 64 values a sample, {n} samples, eleven bins each"
    return tolerance(worst, 4.5, about, "largest error of a share, in its standard deviations")


def _disturbed(model: PoissonDataset, size: float, seed: int) -> Answers:
    """A denoiser whose eps has an error of its own, the same for every process."""
    generator = torch.Generator().manual_seed(seed)

    def answer(x: Tensor, t: Tensor) -> Tensor:
        return model(x, t).eps + size * torch.randn(x.shape, generator=generator, dtype=x.dtype)

    return Answers(answer, model.process, model.shape, "eps")


@functools.cache
def _moved(degrees: float | None, seed: int) -> float:
    """How far errors in every eps move 256 samples, root mean square."""
    model, runs = PoissonDataset(load("train")[0][:256].double(), PFGMpp(degrees=degrees)), []
    for size in (0.0, ERROR):
        made = _disturbed(model, size, seed)
        runs.append(sample(made, 256, steps=18, solver="heun", timesteps="karras", seed=seed, dtype=F64))
    return float((runs[1] - runs[0]).square().mean().sqrt())


def _robust(seed: int) -> Outcome:
    means = {d: sum(_moved(d, s) for s in (seed, seed + 1, seed + 2)) / 3 for d in DEGREES}
    found = ", ".join(f"D = {d or 'infinity'} {mean:.3g}" for d, mean in means.items())
    about = f"D = 2, errors of standard deviation {ERROR} in every eps, 256 digits as data, 256 samples, heun with 18"
    about += f" karras steps; {found}"
    unit = "root mean square distance from the run without errors"
    return arms(_moved, 2.0, None, "D infinite (EDM)", about, unit=unit)(seed)


def _four_pixels(seed: int) -> Outcome:
    """Each value repeated in four pixels: their mean has half the noise, which a shift of 2 makes up for."""
    model, clean = mixture(Flow()), mixture(Flow()).sample(256, seed)
    noise, differences = Noise(seed).normal(1, (256, 2, 4), "cpu", F64), []
    for process in (Shifted(Flow(), 2.0), Flow()):
        worst = 0.0
        for t in TIMES:
            large = process.alpha(t) * clean.unsqueeze(-1) + process.sigma(t) * noise
            # The mean of four pixels is all that they tell: their value with noise sigma / 2. As a small picture:
            ratio = process.sigma(t) / 2 / process.alpha(t)
            own = 1 / (1 + ratio)
            told = model(own * large.mean(-1) / process.alpha(t), torch.tensor(ratio * own, dtype=F64)).x0
            small = Flow().alpha(t) * clean + Flow().sigma(t) * noise.mean(-1) * 2
            wanted = model(small, torch.tensor(t, dtype=F64)).x0
            worst = max(worst, float((told - wanted).norm(dim=1).mean() / wanted.norm(dim=1).mean()))
        differences.append(worst)
    about = f"8-component mixture, every value repeated 4 times, shift 2, t in {TIMES}, 256 samples: best guess of the"
    about += " picture against that of the small one at the same time"
    return compared(differences, "the flow without a shift", about, unit="largest relative difference")


def _straighter(seed: int) -> Outcome:
    """The same noise levels for both, so that only the clock differs in which Euler's step is straight."""
    levels = [t for t in make_times(EDM(LOW, HIGH), EVALUATIONS, "karras") if t > 0]
    errors = []
    for process in (EDM(LOW, HIGH), VE(LOW, HIGH)):
        times = [process.t_max, *(process.time(-math.log(s)) for s in levels[1:-1]), process.t_min, process.t_zero]
        errors.append(problem(process, seed).error(plan(process, "euler", timesteps=times)))
    about = f"Euler, {EVALUATIONS} evaluations at the same sigmas (karras, 50 to 0.01, then 0), 8-component mixture,"
    about += " 256 noises"
    return compared(errors, "VE's clock, sigma geometric in time", about, unit=ENDPOINT)


def _less_variance(seed: int) -> Outcome:
    t = clock(VP())
    saved = 1 - SubVP().sigma(t) ** 2 / VP().sigma(t) ** 2
    about = f"vp and sub-vp, {len(t)} times; {float(saved.mean()):.2g} on average"
    unit = "smallest share of VP's variance saved"
    return Outcome(float(saved.min()), 0.0, "VP itself", about, better="high", unit=unit)


CLAIMS = (
    Claim("cosine", "its formulas agree with each other", on_circle(Cosine())),
    Claim("cosine", "spends less of its clock on almost pure noise than a linear beta", _spread),
    Claim("cosine", "equal steps in time serve ddim better than under a linear beta, at 10 evaluations",
          processes(Cosine(), VP(), "ddim", 10, "VP with linear beta")),
    Claim("discrete", "its formulas agree with each other and with the table", _unit),
    Claim("discrete", "asking the model between its steps is more accurate than at rounded ones", _never_rounded),
    Claim("zero-terminal-snr", "the last step is pure noise, the first is unchanged", _ends),
    Claim("zero-terminal-snr", "samples reach a brightness far from the middle", _brightness),
    Claim("flow", "its formulas agree with each other",
          formulas(Flow(), "alpha + sigma against 1", lambda p, t: p.alpha(t) + p.sigma(t) - 1)),
    *(Claim("flow", f"paths are straighter than VP's: Euler's error at {nfe} evaluations is lower",
            processes(Flow(), VP(), "euler", nfe, "VP")) for nfe in (4, 10)),
    Claim("interpolated-cosine", "its formulas agree with each other", on_circle(InterpolatedCosine())),
    Claim("interpolated-cosine", "keeps the SNR of the averaged picture at every resolution", _resolution),
    Claim("kinetic-optimal", "its formulas agree with each other", _formulas),
    *(slow("kinetic-optimal", f"has less kinetic energy than {other} on the {problem}", _energy(problem, other))
      for problem in PROBLEMS for other in OTHERS),
    *(slow("kinetic-optimal", f"is nearer to the data than {other} after {steps} Euler steps", _euler(other, steps))
      for steps in (4, 8) for other in OTHERS),
    Claim("per-element", "equal bands give every solver's scalar samples", _parity),
    Claim("per-element", "bands with schedules of their own reach the exact end points of their own ODEs", _converges),
    Claim("pfgmpp", "its noise has the radius of the paper's kernel", _radius),
    slow("pfgmpp", "is moved less by errors of the score than diffusion is", _robust),
    Claim("shifted", "is equation 23 on the flow, and its formulas agree with each other",
          formulas(Shifted(Flow(), 3.0), "sigma against 3 t / (1 + 2 t)",
                   lambda p, t: p.sigma(t) - 3 * t / (1 + 2 * t))),  # eq. 23
    Claim("shifted", "a picture of four times the pixels tells as much at each time as the small one", _four_pixels),
    Claim("ve", "its formulas agree with each other",
          formulas(VE(LOW, HIGH), "log sigma against a line in t",
                   lambda p, t: p.sigma(t).log() - (math.log(LOW) + t * math.log(HIGH / LOW)))),
    Claim("edm", "its formulas agree with each other",
          formulas(EDM(), "sigma against t", lambda p, t: p.sigma(t) / t - 1)),
    Claim("edm", "paths are straighter in sigma than in log sigma: Euler's error is lower", _straighter),
    Claim("vp", "its formulas agree with each other", on_circle(VP())),
    Claim("sub-vp", "its formulas agree with each other",
          formulas(SubVP(), "sigma against 1 - alpha^2", lambda p, t: p.sigma(t) - (1 - p.alpha(t) ** 2))),
    Claim("sub-vp", "has less variance than VP at every time", _less_variance),
)  # fmt: skip
