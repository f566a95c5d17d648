"""Claims of couplings, straightened flows and transport, and the flows that they share.

The plane: the eight-component mixture of `claims.problems`, a perceptron, 1000 steps of 128 samples. Digits: a small
unet, 300 steps of 64 images. Both predict the rectified flow's velocity at uniform times.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable

import torch
from scipy import stats
from torch import Tensor, nn

from claims.claim import Claim, Outcome, Run, arms, compared, experiment, over_seeds, slow, tolerance
from claims.common import F64, frechet, plan
from claims.parts import VP, Denoiser, Flow, GaussianMixture, Noise
from claims.problems import mixture
from claims.trained import MLP, NetworkDenoiser, UNet, fit, fresh
from fewstep.core.methods import find
from fewstep.data.digits import load
from fewstep.metrics.curvature import curvature
from fewstep.training.couplings import assignment, immiscible
from fewstep.training.monge_gap import monge_gap, sinkhorn_divergence, squared_cost
from fewstep.training.optimal_transport import OTStart
from fewstep.training.reflow import reflow

STEPS, BATCH, RATE = 1000, 128, 2e-3
DIGIT_STEPS, DIGIT_BATCH = 300, 64
PLANE = f"8-component mixture, mlp, {STEPS} steps of {BATCH}"
DIGITS = f"digits, unet, {DIGIT_STEPS} steps of {DIGIT_BATCH}"
TRUTH_SEED = 1000  # of the samples that distances are measured to, apart from those of training
N = 1024
BEND, W2 = "curvature over squared chord", "W2 to the truth"  # units of the figures below
BASE = "independent-coupling"
D, POINTS, ITERATIONS, FACTOR = 3, 128, 200, 1.0


@functools.cache
def plane_flow(seed: int, coupling: str = "independent-coupling", steps: int = STEPS) -> NetworkDenoiser:
    """A flow to the mixture, its training noise coupled by name."""
    model = NetworkDenoiser(fresh(MLP, seed), Flow(), "velocity", shape=(2,), value_range=None)
    data = mixture(Flow()).sample(20_000, seed).float()
    return fit(model, data, steps=steps, batch=BATCH, lr=RATE, coupling=find(coupling, "training"), seed=seed)


@functools.cache
def digits_flow(seed: int, coupling: str) -> NetworkDenoiser:
    """A flow to the digits, without labels."""
    network = fresh(UNet, seed, width=(16, 32), classes=None)
    model = NetworkDenoiser(network, Flow(), "velocity", shape=(1, 8, 8))
    named = find(coupling, "training")
    return fit(model, load("train")[0], steps=DIGIT_STEPS, batch=DIGIT_BATCH, lr=RATE, coupling=named, seed=seed)


def noises(seed: int, shape: tuple[int, ...], n: int = N) -> Tensor:
    return Noise(seed + 100).normal(0, (n, *shape))


def bend(model: NetworkDenoiser, seed: int, n: int = N, steps: int = 50) -> float:
    """Curvature of the model's paths, relative to the squared length of their chords."""
    made = plan(Flow(), "ddim", steps, "uniform")
    run = made.run(model, noises(seed, model.shape or (), n), trajectory=True)
    return curvature(run.trajectory, made.times).relative


def wasserstein(samples: Tensor, truth: Tensor) -> float:
    """The exact 2-Wasserstein distance of two equally large sets of points."""
    cost = squared_cost(samples, truth)
    return float(cost.gather(1, assignment(cost)[:, None]).mean().sqrt())


@functools.cache
def truth(seed: int) -> Tensor:
    return mixture(Flow()).sample(N, TRUTH_SEED + seed)


def plane_error(model: Denoiser, seed: int, steps: int) -> float:
    """W2 of samples in so many Euler steps to exact ones."""
    return wasserstein(plan(Flow(), "ddim", steps, "uniform")(model, noises(seed, (2,))), truth(seed))


@functools.cache
def floor(seed: int) -> float:
    """W2 of exact samples from exact ones."""
    return wasserstein(mixture(Flow()).sample(N, TRUTH_SEED + 500 + seed), truth(seed))


def digits_error(model: NetworkDenoiser, seed: int, steps: int) -> float:
    """Frechet distance in pixels of 1000 samples in so many Euler steps to the training images."""
    made = plan(Flow(), "ddim", steps, "uniform")
    samples = torch.cat([made(model, part) for part in noises(seed, (1, 8, 8), 1000).split(250)])
    return frechet(samples, load("train")[0]).value


def _against_base(figure: Callable[[str, int], float], coupling: str, about: str, unit: str) -> Run:
    return arms(figure, coupling, BASE, "independent noise", about, unit=unit)


def _bends(coupling: str, flow: Callable[[int, str], NetworkDenoiser], n: int, what: str) -> Run:
    return _against_base(lambda c, s: bend(flow(s, c), s, n), coupling, f"{what}; 50 Euler steps", BEND)


@experiment
def _plane_error(seed: int, coupling: str) -> Outcome:
    exact = sum(map(floor, (seed, seed + 1, seed + 2))) / 3
    about = f"{PLANE}; 5 Euler steps, 1024 samples, exact ones have {exact:.2g}"
    return _against_base(lambda c, s: plane_error(plane_flow(s, c), s, 5), coupling, about, W2)(seed)


@experiment
def _digits_error(seed: int, coupling: str) -> Outcome:
    about, unit = f"{DIGITS}; 5 Euler steps, 1000 samples", "Frechet distance in pixels"
    return _against_base(lambda c, s: digits_error(digits_flow(s, c), s, 5), coupling, about, unit)(seed)


def _batch(seed: int, n: int = 256) -> tuple[Tensor, Tensor, torch.Generator]:
    generator = torch.Generator().manual_seed(seed)
    images = load("train")[0]
    rows = torch.randperm(len(images), generator=generator)[:n]
    return images[rows], torch.randn(n, *images.shape[1:], generator=generator), generator


def _dependence(seed: int) -> Outcome:
    """The mean inner product of a sample, centred, with its noise: zero where neither says anything of the other."""
    found = []
    for name in (BASE, "minibatch-ot"):
        x0, eps, generator = _batch(seed)
        product = (x0 - x0.mean(0)) * find(name, "training")(x0, eps, generator)
        found.append(abs(float(product.flatten(1).sum(1).mean())))
    return compared(found, "minibatch-ot", "256 digits", unit="|mean inner product of x0 and eps|")


def _rounded(seed: int) -> Outcome:
    """How far the assignment from 16-bit numbers costs more than the exact one."""
    x0, eps, generator = _batch(seed)
    pairs = (x0 - immiscible(x0, eps, generator, bits=bits) for bits in (16, 32))
    half, exact = (float(pair.flatten(1).norm(dim=1).mean()) for pair in pairs)
    return tolerance(half / exact - 1, 1e-3, "256 digits, mean distance", "relative excess of the cost")


def _gaussian(seed: int) -> Outcome:
    """Kolmogorov-Smirnov distance of 40 batches' assigned noise from the normal distribution."""
    pooled = torch.cat([immiscible(*_batch(seed * 1000 + part, 128)) for part in range(40)]).flatten()
    limit = 1.63 / len(pooled) ** 0.5  # passed by 99 % of samples of independent normals
    found = float(stats.kstest(pooled.numpy(), "norm").statistic)
    against, about = "the 1 % limit of the Kolmogorov-Smirnov test", "40 batches of 128 digits, all values pooled"
    return Outcome(found, limit, against, about, unit="distance of distribution functions")


@functools.cache
def reflowed(seed: int) -> NetworkDenoiser:
    """The flow with independent noise, trained as long again on 8192 of its own pairs."""
    made = plan(Flow(), "heun", 25, "uniform")
    options = {"steps": STEPS, "batch": BATCH, "lr": RATE}
    return reflow(plane_flow(seed), made, n=8192, seed=seed, **options)


def _against_teacher(figure: Callable[[NetworkDenoiser, int], float], what: str, unit: str) -> Run:
    def run(s: int) -> list[float]:
        return [figure(flow, s) for flow in (reflowed(s), plane_flow(s, steps=2 * STEPS))]

    about = f"{PLANE}, then {STEPS} more on 8192 pairs; {what}"
    return over_seeds(run, "as many steps in all on independent noise", about, unit=unit)


def _gaussians(seed: int) -> tuple[Tensor, Tensor]:
    """A shift and a symmetric matrix with eigenvalues 0.3 to 1.7: the optimal map `m + A x` from N(0, 1)."""
    generator = torch.Generator().manual_seed(seed)
    basis, _ = torch.linalg.qr(torch.randn(D, D, generator=generator, dtype=F64))
    matrix = basis @ torch.diag(torch.linspace(0.3, 1.7, D, dtype=F64)) @ basis.T
    return torch.randn(D, generator=generator, dtype=F64), matrix


def _known(seed: int) -> Outcome:
    (shift, matrix), generator = _gaussians(seed), torch.Generator().manual_seed(seed + 1)
    x = torch.randn(512, D, generator=generator, dtype=F64)
    best = shift + x @ matrix
    mixed = best[torch.randperm(512, generator=generator)]
    gaps = abs(float(monge_gap(x, best))), float(monge_gap(x, mixed))
    about = f"512 points of a Gaussian in {D} dimensions and their images"
    return compared(gaps, "the same points, coupled at random", about, unit="Monge gap")


def _fitted(factor: float, seed: int) -> float:
    """Mean squared error of a one-step map, fitted to the target's points alone, against the optimal map."""
    (shift, matrix), generator = _gaussians(seed), torch.Generator().manual_seed(seed + 1)
    layers = (nn.Linear, D, 64), (nn.SiLU,), (nn.Linear, 64, 64), (nn.SiLU,), (nn.Linear, 64, D)
    network = fresh(lambda: nn.Sequential(*(make(*sizes) for make, *sizes in layers)), seed)
    optimizer = torch.optim.Adam(network.parameters(), lr=3e-3)

    def draw(n: int = POINTS) -> Tensor:
        return torch.randn(n, D, generator=generator, dtype=F64)

    for _ in range(ITERATIONS):
        x, y = draw(), shift + draw() @ matrix
        out = network(x.float())
        loss = sinkhorn_divergence(out, y) + (factor * monge_gap(x, out) if factor else 0.0)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    x = draw(2048)
    with torch.no_grad():
        return float((network(x.float()) - (shift + x @ matrix)).square().sum(1).mean())


FLOWS: dict[str, Callable[[int], NetworkDenoiser]] = {
    "reflowed": reflowed,
    "coupled": lambda s: plane_flow(s, "minibatch-ot"),
    "independent": plane_flow,
    "twice as long": lambda s: plane_flow(s, steps=2 * STEPS),
}


def _of_flow(name: str, seed: int) -> float:
    noise = noises(seed, (2,))
    return float(monge_gap(noise, plan(Flow(), "heun", 25, "uniform")(FLOWS[name](seed), noise)))


def _flows(ours: str, theirs: str, against: str, what: str) -> Run:
    return arms(_of_flow, ours, theirs, against, f"{PLANE}, {what}; 1024 noises and their ends", unit="Monge gap")


def _ring() -> GaussianMixture:
    """Eight narrow modes on a circle, far apart."""
    angle = torch.arange(8) * math.pi / 4
    return GaussianMixture(torch.ones(8), torch.stack((angle.cos(), angle.sin()), 1), 0.05**2, VP())


def _between(x: Tensor) -> float:
    """The share of samples more than four standard deviations from every mode."""
    return float((torch.cdist(x, _ring().means).amin(1) > 0.2).double().mean())


def _modes(seed: int) -> Outcome:
    model, process, n = _ring(), VP(), 4000
    data = model.sample(256, seed)
    t = process.time(1.0)  # sigma / alpha = 0.37: the modes have parted
    start = OTStart(process, data, t, seed).fit(seed=seed)
    end = process.log_snr(process.t_min)
    inner = [process.time(1.0 + (end - 1.0) * k / 9) for k in range(1, 9)]
    base = plan(process, "ddim", timesteps=[t, *inner, process.t_min, process.t_zero])
    whole = plan(process, "ddim", 10, "log-snr")
    noise = Noise(seed).normal(0, (n, 2), "cpu", F64)
    x = start.plan(base, neighbours=4)(model, noise, dtype=F64)
    nearest, fresh = (float(torch.cdist(y, data).amin(1).mean()) for y in (x, model.sample(n, seed + 1)))
    about = f"ddim from t = {t:.2f}, {base.nfe} evaluations, 256 training samples, 4 neighbours, 8 modes of standard"
    about += f" deviation 0.05 on the unit circle, vp, {n} samples; the nearest training sample is {nearest:.4f} away,"
    about += f" from new data {fresh:.4f}"
    figures = [_between(y) for y in (x, whole(model, noise, dtype=F64))]
    return compared(figures, f"ddim from noise, {whole.nfe} evaluations", about, unit="share of samples between modes")


def _masses(seed: int) -> Outcome:
    start = OTStart(VP(), mixture(VP()).sample(64, seed), 0.4, seed)
    flat = float((64 * start.masses(2**17) - 1).square().mean().sqrt())
    ours = float((64 * start.fit(300, seed=seed).masses(2**17) - 1).square().mean().sqrt())
    about = f"64 atoms of the 8-component mixture, vp, t = 0.4, 300 steps; at equal heights {flat:.2g}, the estimate's"
    about += f" own error {math.sqrt(64 / 2**17):.2g}"
    return tolerance(ours, 0.1, about, "deviation of the cells' mass from 1/n, relative")


CLAIMS = (
    Claim(BASE, "noise says nothing of the sample it goes with", _dependence),
    Claim("immiscible", "half precision costs no more than a thousandth", _rounded),
    Claim("immiscible", "pooled noise passes a test of normality", _gaussian),
    *(slow(name, sentence, measured(name))
      for name in ("minibatch-ot", "immiscible", "immiscible-knn")
      for sentence, measured in (
          ("paths to a plane's mixture bend less", lambda name: _bends(name, plane_flow, N, PLANE)),
          ("five steps land closer to a plane's mixture", _plane_error),
          ("paths to digits bend less", lambda name: _bends(name, digits_flow, 128, DIGITS)),
          ("five steps give better digits", _digits_error),
      )),
    slow("reflow", "straighter paths than the teacher's", _against_teacher(bend, "50 Euler steps", BEND)),
    *(slow("reflow", f"{name} closer than the teacher's",
           _against_teacher(functools.partial(plane_error, steps=n), f"{n} Euler steps, 1024 samples", W2))
      for n, name in ((2, "two steps land"), (1, "one step lands"))),
    Claim("monge-gap", "near zero for the optimal map, large for a random coupling", _known),
    slow("monge-gap", "as a regulariser, leads a one-step map to the optimal one", 
         arms(_fitted, FACTOR, 0.0, "the Sinkhorn divergence alone",
              f"perceptron, Gaussians in {D} dimensions, {ITERATIONS} steps of {POINTS} points, factor {FACTOR:g}",
              unit="mean squared distance from the optimal map")),
    slow("monge-gap", "tells a reflowed flow from its teacher",
         _flows("reflowed", "twice as long", "a flow of as many steps on independent noise", "reflowed as long again")),
    slow("monge-gap", "tells a flow trained on coupled noise from one on independent noise",
         _flows("coupled", "independent", "a flow on independent noise", "coupled by minibatch-ot")),
    slow("dpm-ot", "leaves fewer samples between separate modes than ddim from noise", _modes),
    slow("dpm-ot", "gives every training sample the same mass", _masses),
)  # fmt: skip
