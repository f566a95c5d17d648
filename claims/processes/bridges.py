"""Claims of the processes between pairs and between two densities."""

from __future__ import annotations

import functools
import math
from itertools import pairwise

import torch
from torch import Tensor

from claims.bridges import DATA, OTHER, between, ends, largest, law_between, law_duel, ode_duel
from claims.claim import Claim, Outcome, Run, arms, compared, experiment, slow, tolerance
from claims.common import ENDPOINT, F64, endpoint_error, plan, sample
from claims.duels import formulas, identities
from claims.parts import VP
from claims.problems import clock
from claims.trained import MLP, NetworkDenoiser, UNet, fit, fresh, rows_of
from fewstep.data import digits
from fewstep.denoisers.bridge import BridgeDenoiser
from fewstep.denoisers.interpolant import drawn_from
from fewstep.processes.ddbm import DDBM
from fewstep.processes.iadb import AlphaBlending
from fewstep.processes.interpolants import Interpolant
from fewstep.processes.mean_reverting import MeanReverting
from fewstep.processes.ouve import OUVE
from fewstep.processes.rdbm import GOUB, RDBM
from fewstep.processes.rddm import RDDM, Residual
from fewstep.processes.resfusion import Resfusion
from fewstep.processes.resshift import ResShift

NFE = 10
TRIGONOMETRIC = Interpolant(path="trigonometric")
PROCESS = MeanReverting()
STEPS, BATCH, EVALUATIONS = 300, 64, 5


def _base_again(seed: int) -> Outcome:
    """y = alpha_T x0 + sigma_T z makes the bridge its base."""
    process = DDBM()
    base, t = process.base, clock(process)
    s, alpha, sigma = process.base_time(t), base.alpha(base.t_max), base.sigma(base.t_max)
    mean = process.a(t) + process.b(t) * alpha - base.alpha(s)
    variance = process.c(t) ** 2 + (process.b(t) * sigma) ** 2 - base.sigma(s) ** 2
    return identities(process, largest([mean, variance]), "moments with y from the base's end against the base's own")


@experiment
def _solver(seed: int, ours: str) -> Outcome:
    model, (x1, wanted) = between(), ends(seed)
    made = [plan(model.process, name, NFE, "uniform") for name in (ours, "ddim")]
    errors = [endpoint_error(p(model, x1, dtype=F64), wanted).value for p in made]
    about = f"{ours}, {NFE} even steps, between two mixtures in the plane, {len(x1)} samples"
    return compared(errors, f"the paper's step (ddim), {NFE} evaluations", about, unit=ENDPOINT)


def _targets(seed: int) -> Outcome:
    """The same network, data and budget; the error of E[x1 - x0 | x] relative to its own variance."""

    def figure(predicts: str, s: int) -> float:
        model, (x0, x1) = between(), between().sample_pairs(4096, s + 50)
        t = torch.linspace(0.02, 0.98, 4096, dtype=F64)
        x = (1 - t).unsqueeze(1) * x0 + t.unsqueeze(1) * x1
        wanted, network = model(x, t).to("flow"), fresh(MLP, s, width=48, depth=2)
        untrained = NetworkDenoiser(network, AlphaBlending(), predicts, (2,), value_range=None)
        coupling = drawn_from(OTHER.sample(4096, s + 1).float())
        made = fit(untrained, DATA.sample(4096, s).float(), steps=1000, lr=2e-3, coupling=coupling, seed=s)
        with torch.no_grad():
            found = made(x.float(), t).to("flow").double()
        return float((found - wanted).square().mean() / wanted.var(0).mean())

    about = "predicting the difference, mlp of width 48, 1000 steps of 256 pairs, t from 0.02 to 0.98"
    unit = "squared error of the difference, relative to its variance"
    return arms(figure, "flow", "x0", "predicting x0", about, unit=unit)(seed)


def _sde(seed: int) -> Outcome:
    process = OUVE()
    t, ratio = clock(process), process.sigma_max / process.sigma_min
    g2 = 2 * math.log(ratio) * process.sigma_min**2 * ratio ** (2 * t)
    errors = [process.drift(t) + process.gamma, process.diffusion2(t) - g2]
    return identities(process, largest(errors), "drift and g^2 against the paper's")


def _sinh(seed: int) -> Outcome:
    process = GOUB(theta=1.7, spread=0.6)
    t = clock(process)
    s = process.integral(t)
    mean = torch.sinh(1.7 - s) / math.sinh(1.7)
    variance = 2 * 0.36 * torch.sinh(s) * torch.sinh(1.7 - s) / math.sinh(1.7)
    return identities(process, largest([process.a(t) - mean, process.c(t) ** 2 - variance]), "the sinh formulas")


def _brownian(seed: int) -> Outcome:
    """theta = 1e-6 with 2 theta spread^2 = 1."""
    process = RDBM(theta=1e-6, spread=math.sqrt(0.5e6))
    t = clock(process)
    share = process.integral(t) / 1e-6
    worst = largest([process.a(t) - (1 - share), process.c(t) ** 2 - share * (1 - share)])
    return tolerance(worst, 1e-6, "a and c^2 at theta = 1e-6 against 1 - t and t (1 - t)", "error")


def half(images: Tensor) -> Tensor:
    """Digits whose lower half is darkened and blurred by 3x3 means."""
    blurred = torch.nn.functional.avg_pool2d(images, 3, stride=1, padding=1, count_include_pad=False)
    return torch.cat([images[:, :, :4], 0.5 * (blurred[:, :, 4:] - 1)], dim=2)


@functools.cache
def restored(modulated: bool, seed: int) -> tuple[float, float]:
    """Root mean square errors in the intact and in the damaged half, of 256 held-out digits."""
    images, held = digits.load("train")[0], digits.load("validation")[0][:256]
    process = (RDBM if modulated else GOUB)(theta=1.0, spread=0.5, t_min=1e-3)
    network = fresh(UNet, seed, 1, 8, (32, 48), attention=(), classes=None, picture=1)
    model, rows = BridgeDenoiser(network, process, shape=(1, 8, 8)), rows_of(images, y=half(images))
    model = fit(model, rows, steps=STEPS, batch=BATCH, lr=2e-3, seed=seed)
    out = sample(model, len(held), steps=EVALUATIONS, solver="ddim", timesteps="uniform", seed=seed, y=half(held))
    error = (out - held).square()
    return float(error[:, :, :4].mean().sqrt()), float(error[:, :, 4:].mean().sqrt())


def _part(part: int, where: str) -> Run:
    about = f"digits with their lower half damaged, {STEPS} training steps of {BATCH}, ddim, {EVALUATIONS} evaluations,"
    about += " 256 held-out digits"
    against, unit = "goub, the same network and training", f"root mean square error in the {where} half"
    return arms(lambda arm, s: restored(arm, s)[part], True, False, against, about, unit=unit)


def _trajectory(seed: int) -> Outcome:
    """RDDM's step in A = 1 - alpha, B = sigma, y = 0, against DDIM's, for one network that is not even sensible."""
    process, base, worst = Residual(VP()), VP(), 0.0
    ddim = ours = torch.randn(64, 8, generator=torch.Generator().manual_seed(seed), dtype=F64)
    for t, s in pairwise(torch.linspace(1, 0, 21, dtype=F64)):
        eps = torch.tanh(ours)
        ddim = base.alpha(s) * (ddim - base.sigma(t) * eps) / base.alpha(t) + base.sigma(s) * eps
        x0 = (ours - process.c(t) * eps) / process.a(t)
        ours = ours + (process.b(t) - process.b(s)) * x0 - (process.c(t) - process.c(s)) * eps
        worst = max(worst, float((ours - ddim).abs().max() / ddim.abs().max()))
    return tolerance(worst, 1e-6, "RDDM's steps with DDPM's coefficients against DDIM's, 20 steps, 64 trajectories")


def _oracle(seed: int) -> Outcome:
    """DDPM's posterior means with the true resnoise in place of eps, 12 steps from half way."""
    process, base = Resfusion(), VP()
    x0, y, eps = torch.randn(3, 1000, generator=torch.Generator().manual_seed(seed), dtype=F64)
    times = torch.linspace(process.t_max, 0.0, 13, dtype=F64)
    x = process.b(times[0]) * y + process.c(times[0]) * eps
    for t, s in pairwise(times):
        bar, sigma = base.alpha(t), base.sigma(t)
        alpha = (bar / base.alpha(s)) ** 2
        resnoise = (x - bar * x0 - (1 - bar) * (y - x0)) / sigma
        resnoise = resnoise + (1 - alpha.sqrt()) * sigma / (1 - alpha) * (y - x0)
        x = (x - (1 - alpha) / sigma * resnoise) / alpha.sqrt()
    return tolerance(largest([x - x0]), 1e-6, "12 steps with the true resnoise against x0, 1000 numbers")


def _schedule(seed: int) -> Outcome:
    """sqrt(eta_k) = sqrt(eta_1) b0^beta_k, beta_k = ((k - 1) / (T - 1))^p (T - 1), T = 15, p = 0.3."""
    process, steps, power, worst = ResShift(), 15, 0.3, 0.0
    base = math.exp(math.log(process.eta_max / process.eta_min) / (2 * (steps - 1)))
    for k, t in zip(range(steps, 0, -1), process.grid(steps, power), strict=False):
        root = math.sqrt(process.eta_min) * base ** (((k - 1) / (steps - 1)) ** power * (steps - 1))
        worst = max(worst, abs(process.b(t) - root**2), abs(process.c(t) - process.kappa * root))
    return identities(process, worst, "eta and kappa sqrt(eta) on the paper's chain of 15 steps")


CLAIMS = (
    Claim("ddbm", "with a random picture it is ordinary diffusion", _base_again),
    Claim("ddbm", "is sampled by any solver: unipc comes nearer the law of x0 given y than ancestral sampling",
          law_duel(DDBM(), "unipc", "ddpm", 10, "log-snr")),
    *(Claim("iadb", f"between two densities {ours} is nearer to the ODE's end than its own step", _solver(ours))
      for ours in ("vab-2", "dpmpp-2m")),
    slow("iadb", "learns the difference better by predicting it than by predicting x0", _targets),
    Claim("interpolant", "its formulas agree with each other",
          formulas(TRIGONOMETRIC, "sigma against sin", lambda p, t: p.sigma(t) - torch.sin(math.pi * t / 2))),
    *(slow("interpolant", f"takes one mixture to another by the ODE: {path}, latent {latent}",
           law_between(path, latent, "vab-3", 30, f"{path} with latent {latent}, vab-3, 30 even steps, 2048 samples"
                       " between two mixtures in the plane"))
      for path, latent in (
          ("linear", "zero"), ("linear", "brownian"), ("trigonometric", "quadratic"), ("encoding-decoding", "sin2"),
      )),
    Claim("mean-reverting", "its formulas agree with each other and with its SDE",
          formulas(PROCESS, "g^2 against 2 spread^2 theta",  # theta = -drift
                   lambda p, t: p.diffusion2(t) + 2 * p.spread**2 * p.drift(t))),
    *(Claim("mean-reverting", f"MR Sampler of order 2 beats Euler at {nfe} evaluations",
            ode_duel(PROCESS, "dpmpp-2m", "euler", nfe, "uniform")) for nfe in (5, 10)),
    Claim("ouve", "its closed-form variance is its SDE's", _sde),
    Claim("ouve", "an exponential solver of order 2 beats Euler at 10 evaluations",
          ode_duel(OUVE(), "dpmpp-2m", "euler", 10, "uniform")),
    Claim("goub", "is the sinh bridge, and its formulas agree", _sinh),
    Claim("rdbm", "has the Brownian bridge for its limit at small theta", _brownian),
    slow("rdbm", "leaves intact pixels nearer to what they were", _part(0, "intact")),
    slow("rdbm", "restores damaged pixels no worse", _part(1, "damaged")),
    Claim("rddm", "is the integral of its rates, and its formulas agree",
          formulas(RDDM(), "integrals of the rates 2 (1 - t) and 2 t",
                   lambda p, t: [p.b(t) - (2 * t - t**2), p.c(t) ** 2 - t**2])),
    Claim("rddm", "unipc comes nearer the law of x0 given y than the paper's sampler at 10 evaluations",
          law_duel(RDDM(), "unipc", "ddim", 10, "log-snr")),
    Claim("residual", "with DDPM's coefficients RDDM takes DDIM's trajectory", _trajectory),
    Claim("resfusion", "starts where the data's coefficient is 0",
          lambda seed: tolerance(abs(2 * VP().alpha(Resfusion().t_max) - 1), 1e-6,
                                 "coefficient of the data at the start", "|2 A - 1|")),
    Claim("resfusion", "the true resnoise leads back to the data", _oracle),
    Claim("resfusion", "at 5 evaluations unipc comes nearer the law of x0 given y than the paper's sampler",
          law_duel(Resfusion(), "unipc", "ddpm", 5, "log-snr")),
    Claim("resshift", "has the paper's schedule, and its formulas agree with each other", _schedule),
    Claim("resshift", "at 5 steps unipc comes nearer the law of x0 given y than the paper's chain",
          law_duel(ResShift(), "unipc", "shift-ancestral", 5, "log-snr")),
)  # fmt: skip
