"""Claims of the solvers that draw noise: their distances from exact samples, and exact chains."""

from __future__ import annotations

import math
from itertools import pairwise

import torch
from torch import Tensor

from claims.bridges import OTHER, D, distance, law_between, law_duel, learned, pairs
from claims.claim import Claim, Outcome, arms, compared, experiment, slow, tolerance
from claims.common import ENDPOINT, F64, SLICED, gap, plan, sliced
from claims.duels import orders, stochastic_duel
from claims.objectives import ABOUT_CHAIN, PROCESS, hybrid
from claims.parts import EDM, VE, VP, Answers, Flow, GaussianMixture, Noise, Process
from claims.problems import mixture, problem, wide
from fewstep.conditions.latent import Latent
from fewstep.core.denoiser import Denoiser
from fewstep.core.prediction import Prediction, expand
from fewstep.core.sampler import Sampler
from fewstep.processes.ddbm import DDBM
from fewstep.processes.resshift import ResShift
from fewstep.sampling.brownian import BrownianNoise
from fewstep.sampling.learned_variance import chain_bound
from fewstep.sampling.mcmc import denoising_mcmc
from fewstep.training.noise_classifier import exact_levels, noise_times, train_noise_classifier

STEPS, SAMPLES = 10, 4096
USUAL = ("dpmpp-2m-sde", "karras")  # what other libraries' users take
AUTO_SDE = {4: "sa-solver", 5: "dpmpp-2m-sde", 8: "dpmpp-2m-sde", 10: "dpmpp-2m-sde", 20: "dpmpp-3m-sde"}
BOUNDS = {"beta-tilde, the lower bound": 0.0, "beta, the upper bound": 1.0}
TIMES = noise_times(VP(), 24, 0.02, 1.5)


def _posterior(seed: int) -> Outcome:
    """x_{t-1} ~ N(eta_s / eta_t x_t + (eta_t - eta_s) / eta_t x0, kappa^2 eta_s (eta_t - eta_s) / eta_t), in x."""
    process = ResShift()
    model, source = pairs(process), Noise(seed)
    y, noise = model.sample(32, seed)[1], source.normal(0, (32, D), "cpu", F64)
    times = process.grid(15)
    ours = model.decode(plan(process, "shift-ancestral", timesteps=times)(model, noise, seed=seed, dtype=F64, y=y), y=y)
    x = y + process.c(times[0]) * noise
    for number, (t, s) in enumerate(pairwise(times), start=1):
        at = torch.tensor(t, dtype=F64)
        x0 = model.decode(model(process.coordinates(x, y, at), at, y=y).x0, y=y)
        eta_t, eta_s = process.b(t), process.b(s)
        z = source.normal(number, (32, D), "cpu", F64) if eta_s > 0 else torch.zeros_like(x)
        x = eta_s / eta_t * x + (eta_t - eta_s) / eta_t * x0
        x = x + process.kappa * math.sqrt(eta_s * (eta_t - eta_s) / eta_t) * z
    worst = float((ours - x).abs().max())
    return tolerance(worst, 1e-10, "15 steps against the paper's posterior in x, Gaussian pairs, the same noise")


class _Drawn(Denoiser):
    """Of points of the plane that are normal, x0 drawn given the state, by the latent."""

    shape, std = (2,), 0.6

    def __init__(self, process: Process) -> None:
        super().__init__()
        self.process, self.conditions = process, {"latent": Latent(2)}

    def forward(self, x: Tensor, t: Tensor, latent: Tensor | None = None) -> Prediction:
        alpha, sigma, c = self.process.alpha(t), self.process.sigma(t), self.std**2
        total = alpha**2 * c + sigma**2
        mean = x * expand(alpha * c / total, x)
        drawn = mean if latent is None else mean + latent * expand(sigma * (c / total).sqrt(), x)
        return Prediction(drawn, "x0", x, t, self.process)


def _drawn(seed: int) -> Outcome:
    model, n = _Drawn(VP()), 4096
    noise = Noise(seed).normal(0, (n, 2), "cpu", F64)
    x = [plan(model.process, name, 4)(model, noise, seed=seed, dtype=F64) for name in ("ddgan", "ddpm")]
    errors = [abs(float(one.std()) / model.std - 1) for one in x]
    about = f"normal points, exact draws of x0, 4 steps, {n} samples"
    return compared(errors, "ddpm, the exact mean in place of a draw", about, unit="relative error of the deviation")


@experiment
def _change(seed: int, solver: str) -> Outcome:
    on, found = problem("digits", seed, 16), {}
    for brownian in (True, False):
        made = [plan(on.model.process, solver, n) for n in (20, 40)]
        x, y = (on.run(p, seed=seed, source=BrownianNoise(p, seed) if brownian else None) for p in made)
        found[brownian] = gap(x, y)
    about = f"{solver}, 20 against 40 steps from the same noise, log-snr, embedded digits, 16 noises"
    return Outcome(found[True], found[False], "fresh noise at every step", about, unit="relative change of the picture")


@experiment
def _auto(seed: int, nfe: int, process: Process, wider: bool) -> Outcome:
    """What `auto-sde` takes, on mixtures that its table was not made on."""
    model = wide(process) if wider else mixture(process)
    noise = Noise(seed).normal(0, (SAMPLES, *model.means.shape[1:]), "cpu", F64)
    exact = model.sample(SAMPLES, seed=seed + 1)

    def figure(made: Sampler) -> float:
        return sliced(made(model, noise, seed=seed, dtype=F64), exact)

    made, usual = plan(process, "auto-sde", nfe), plan(process, USUAL[0], nfe, USUAL[1])
    floor = sliced(model.sample(SAMPLES, seed=seed + 2), exact)
    about = (
        f"{made.name} on {made.about['timesteps']}, {nfe} evaluations, {model_name(wider)}, {process.name}, {SAMPLES}"
    )
    about += f" samples; exact ones have {floor:.2g}"
    return Outcome(figure(made), figure(usual), " on ".join(USUAL), about, unit=SLICED)


def model_name(wider: bool) -> str:
    return "mixture in 12 dimensions" if wider else "8-component mixture"


def _rough(x: Tensor, t: Tensor) -> Tensor:
    """A consistency model of a normal distribution of standard deviation 1 that errs the more, the more noise there is:
    the exact end of the probability flow, `x / sqrt(1 + t^2)`, times `1 + t / 100`."""
    return x / (1 + t**2).sqrt() * (1 + t / 100)


def _better(seed: int) -> Outcome:
    """The error of the spread of 4096 samples of 64 numbers, whose standard deviation is 1."""
    model, noise, errors = Answers(_rough, EDM(), (64,)), Noise(seed).normal(0, (4096, 64), "cpu", F64), []
    for times in ([80.0, 2.0, 0.0], [80.0, 0.0]):
        x = plan(model.process, "multistep-consistency", timesteps=times)(model, noise, seed=seed, dtype=F64)
        errors.append(abs(float(x.std()) - 1))
    return Outcome(errors[0], errors[1], "one step", "error of the standard deviation, a model that errs by t / 100")


def _by_diffusion(c: float, s: int) -> float:
    model, x1 = learned(s, 800), OTHER.sample(2048, s + 9)
    made = plan(model.process, "interpolant-sde", 50, "uniform", epsilon=c)
    return distance(made(model, x1, seed=s, dtype=F64), s)


def _distance(fraction: float | None, seed: int) -> float:
    made = plan(PROCESS, "ddpm-learned", STEPS, "log-snr", fraction=fraction)
    samples = made(hybrid(seed), Noise(seed).normal(0, (SAMPLES, 2)), seed=seed)
    return sliced(samples.double(), mixture(PROCESS).sample(SAMPLES, seed + 1))


def _nats(fraction: float | None, seed: int) -> float:
    times = plan(PROCESS, "ddim", STEPS, "log-snr", end="min").times
    data = mixture(PROCESS).sample(SAMPLES, seed + 1).float()
    return float(chain_bound(hybrid(seed), data, times, fraction, seed=seed).mean())


def _spread(samples: Tensor) -> float:
    """Total variation of the modes' shares from the exact ones."""
    exact, centres = mixture(VP()).sample(200_000, 77), mixture(VP()).means
    counts = [torch.bincount(torch.cdist(x, centres).argmin(1), minlength=8) / len(x) for x in (samples, exact)]
    return float((counts[0] - counts[1]).abs().sum() / 2)


@experiment
def _chains(seed: int, learned: bool) -> Outcome:
    model, n = mixture(VP()), 4096
    way, options = ("learned", {}) if learned else ("exact", {"times": TIMES})
    levels = exact_levels(model, TIMES)
    if learned:
        levels = train_noise_classifier(VP(), model.sample(20_000, seed + 2), TIMES, seed=seed)
    found = denoising_mcmc(model, levels, 512, 8, seed=seed, dtype=F64, **options)
    ours = found.samples.reshape(n, 2)
    # heun's n steps make 2 n - 1 evaluations: no fewer than the chains'
    made = plan(VP(), "heun", math.ceil((found.nfe_per_sample + 1) / 2), "karras")
    theirs = made(model, Noise(seed).normal(0, (n, 2), "cpu", F64), dtype=F64)
    exact = model.sample(n, seed + 1)
    figures = [sliced(samples, exact) for samples in (ours, theirs)]
    about = f"{way} noise levels, 512 chains of 8 samples, {found.nfe_per_sample:.2f} evaluations a sample, 24 levels"
    about += (
        f" from sigma/alpha = 1.5 to 0.02, 8-component mixture, vp; the modes' shares are off by {_spread(ours):.3f},"
    )
    about += f" heun's by {_spread(theirs):.3f}"
    return compared(figures, f"heun on karras times, {made.nfe} evaluations", about, unit=SLICED)


@experiment
def _restarted(seed: int, spread: float) -> Outcome:
    """10 steps and two rounds of 3 steps over [0.2, 10], against the same solver with as many evaluations."""
    process, model, n = EDM(), mixture(EDM()), 4096
    noise, data = spread * Noise(seed).normal(0, (n, 2), "cpu", F64), model.sample(n, seed + 1)
    first = plan(process, "restart", 10, "karras", intervals=[(0.2, 10.0, 2, 3)])
    second = plan(process, "rho-rk-2", timesteps="karras", nfe=first.nfe)
    samples = (made(model, noise, seed=seed, dtype=F64) for made in (first, second))
    figures = [sliced(x, data) for x in samples]
    about = f"10 steps, 2 restarts of 3 steps over [0.2, 10], {first.nfe} evaluations, times karras, 8-component"
    about += f" mixture, edm, initial noise times {spread:g}, {n} samples"
    return compared(figures, f"rho-rk-2 alone, {second.nfe} evaluations", about, unit=SLICED)


def _contraction(seed: int) -> Outcome:
    """On N(0, c) two rounds leave (c + low^2)^2 / (c + high^2)^2 of what the start's variance is off by."""
    process, c, low, high, n = EDM(), 0.5, 0.625, 4.0, 16_384
    model = GaussianMixture(torch.ones(1), torch.zeros(1, 2), c, process)
    times = [10.0 * 0.5**k for k in range(10)]
    noise = Noise(seed).normal(0, (n, 2), "cpu", F64)
    noise = 3.0 * noise / noise.std() * math.sqrt(c + 100) / 10
    made = plan(process, "restart", timesteps=times, intervals=[(low, high, 2, 12)], descent="dpm-solver-3")
    found = float(made(model, noise, seed=seed, dtype=F64).var()) / (c + times[-1] ** 2) - 1
    wanted = (3.0**2 - 1) * ((c + low**2) / (c + high**2)) ** 2
    about = f"relative excess variance {found:.3f} for {wanted:.3f} after 2 rounds over [{low}, {high}], 8 before,"
    about += f" normal data, edm, {n} samples"
    limit, against = 4 * math.sqrt(2 / (2 * n)), "tolerance, four standard errors"
    return Outcome(abs(found - wanted), limit, against, about, unit="|excess variance - theory|")


def _corrector(seed: int) -> Outcome:
    on, options = problem(VP(), seed), {"tau": 0.0, "predictor_order": 2}
    errors = [on.error(plan(VP(), "sa-solver", 12, "log-snr", corrector_order=c, **options)) for c in (3, 0)]
    about = f"predictor of order 2, corrector of order 3, 12 evaluations, tau = 0, times log-snr, {on.name}"
    return compared(errors, "the predictor alone", about, unit=ENDPOINT)


CLAIMS = (
    *(Claim(method, "is nearer to the data's distribution than ancestral sampling at 20 evaluations",
            stochastic_duel(method, "ddpm", 20))
      for method in ("dpm-2-ancestral", "dpmpp-2s-ancestral", "ddim-double")),
    *(Claim(method, f"auto-sde at {nfe} evaluations is nearer to the law than the usual, {where}, {process.name}",
            _auto(nfe, process, wider))
      for nfe, method in AUTO_SDE.items()
      for process, wider, where in ((VP(), False, "a mixture"), (Flow(), True, "12 dimensions"))),
    *(Claim("bridge-hybrid", f"nearer the law of x0 given y than ancestral steps at {nfe}",
            law_duel(DDBM(), "bridge-hybrid", "ddpm", nfe, "uniform")) for nfe in (20, 40)),
    Claim("shift-ancestral", "is ResShift's chain number for number", _posterior),
    *(slow("brownian", f"keeps the picture of {solver} when its steps are doubled", _change(solver))
      for solver in ("dpmpp-2m-sde", "ddpm")),
    Claim("ddgan", "keeps the law of the data in four steps, given draws of x0", _drawn),
    Claim("multistep-consistency", "a second step mends what a rough model does in one", _better),
    *(slow("interpolant-sde", f"keeps the law at epsilon = {c:g} gamma^2",
           law_between("linear", "quadratic", "interpolant-sde", 100, epsilon=c,
                       about=f"epsilon = {c:g} gamma^2, quadratic latent, 100 even steps, 2048 samples, exact fields"))
      for c in (0.0, 1.0, 5.0)),
    slow("interpolant-sde", "makes up for a learned field's errors by its diffusion",
         arms(_by_diffusion, 2.0, 0.0, "epsilon = 0, 50 evaluations",
              "epsilon = 2 gamma^2, brownian latent, 50 evaluations, mlp of width 48 after 800 steps, 2048 samples",
              unit=SLICED)),
    *(slow(method, f"{sentence} than with {against}",
           arms(figure, None, fraction, against, f"{ABOUT_CHAIN}; {STEPS} steps, times log-snr, {SAMPLES} points",
                unit=unit))
      for method, sentence, figure, unit in (
          ("ddpm-learned", "10 steps end nearer to the exact law", _distance, SLICED),
          ("chain-bound", "the bound on the likelihood of 10 steps is lower", _nats, "nats a point"),
      ) for against, fraction in BOUNDS.items()),
    slow("denoising-mcmc", "is nearer to the data's law than heun from noise at no fewer evaluations", _chains(False)),
    slow("denoising-mcmc", "and so with a learned noise classifier", _chains(True)),
    # The evaluations are those of predictor and corrector together: the clean end takes none.
    *(slow("pc", f"is nearer to the data's distribution than its predictor alone, {process.name}, {nfe} evaluations",
           stochastic_duel("pc", "ddpm", nfe, process=process)) for process in (VP(), VE()) for nfe in (39, 199)),
    Claim("restart", "is of order 2 without restarts", orders("restart", EDM())),
    Claim("restart", "each round shrinks an error of the start as the theory says", _contraction),
    Claim("restart", "is nearer to the data's distribution than the ODE alone at equal evaluations", _restarted(1.0)),
    Claim("restart", "and when the initial noise is 1.5 times too wide", _restarted(1.5)),
    *(Claim("sa-solver", f"is nearer to the data's distribution than {name} at 20 evaluations",
            stochastic_duel("sa-solver", rival, 20))
      for rival, name in (("ddpm", "ancestral sampling"), ("dpmpp-2m-sde", "dpmpp-2m-sde"))),
    Claim("sa-solver", "without noise the corrector pays, at no evaluation more", _corrector),
)  # fmt: skip
