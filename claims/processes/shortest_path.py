"""Claims of fewstep/processes/shortest_path.py."""

from __future__ import annotations

import functools

import torch
from torch import Tensor

from claims.claim import Claim, Outcome, over_seeds
from claims.problems import F64, identities
from fewstep.core.denoiser import Denoiser
from fewstep.core.prediction import Prediction
from fewstep.core.process import Process
from fewstep.data.digits import load
from fewstep.denoisers.coordinates import DCT, CoordinateDenoiser
from fewstep.denoisers.network import NetworkDenoiser
from fewstep.metrics.frechet import frechet
from fewstep.networks.mlp import MLP
from fewstep.processes.cosine import Cosine
from fewstep.processes.shortest_path import ShortestPath, ShortestPathBand, radial, shortest_path
from fewstep.sampling.build import plan
from fewstep.sampling.sample import sample
from fewstep.training.fit import fit

SIDE = 16
SHAPE = (1, 8, 8)
STEPS, BATCH, SAMPLES = 800, 64, 1000
NFE = (4, 8, 16)


def _band(seed: int) -> Outcome:
    process = ShortestPathBand(variance=0.02)
    t = torch.linspace(process.t_min, process.t_max, 201, dtype=F64)
    line = process.alpha(t) ** 2 * 0.02 + process.sigma(t) ** 2
    return identities(process, float((line / 0.02 ** (1 - t) - 1).abs().max()), "variance against lambda^(1 - t)")


@functools.cache
def _field() -> ShortestPath:
    """Pictures of 16 x 16 whose spectrum falls with the square of the frequency, a quarter of unit variance a pixel."""
    frequency = torch.arange(SIDE, dtype=F64)
    power = 1 / (1 + frequency[:, None] ** 2 + frequency**2)
    power = power * 0.25 * SIDE**2 / power.sum()
    return ShortestPath(tuple(power.flatten().tolist()), tuple(range(SIDE**2)), (1, SIDE, SIDE))


class _Field(Denoiser):
    """The exact denoiser of the field, in the cosine transform's basis, under either process."""

    def __init__(self, process: Process) -> None:
        super().__init__()
        self.process, self.shape = process, (1, SIDE, SIDE)
        self.variances = torch.tensor(_field().variances, dtype=F64).reshape(self.shape)

    def forward(self, x: Tensor, t: Tensor, **condition: Tensor) -> Prediction:
        alpha, sigma = self.process.alpha(t), self.process.sigma(t)
        return Prediction(alpha * self.variances / (alpha**2 * self.variances + sigma**2) * x, "x0", x, t, self.process)


def _length(process: Process) -> float:
    """Of the path of the field's spectrum, by sums: the integral of sqrt(sum (d log v)^2 / 2)."""
    variances = torch.tensor(_field().variances, dtype=F64)
    t = torch.linspace(0.0, 1.0, 4001, dtype=F64)
    alpha, sigma = (value.reshape(len(t), -1) for value in (process.alpha(t), process.sigma(t)))
    return float(((alpha**2 * variances + sigma**2).log().diff(dim=0).square().sum(1) / 2).sqrt().sum())


def _shortest(seed: int) -> Outcome:
    field = _field()
    ours = _length(ShortestPath(field.variances, field.index, field.shape, t_max=1.0))
    return Outcome(
        ours,
        _length(Cosine(t_max=1.0)),
        "cosine",
        "16 x 16 Gaussian field, spectrum 1 / (1 + k^2), from the data to white noise",
        unit="Fisher length",
    )


def _distance(process: Process, nfe: int) -> float:
    """Relative Wasserstein-2 distance of the samples from the field. The map is linear: one gain a mode."""
    model = _Field(process)
    made = plan(process, "ddim", timesteps="uniform", nfe=nfe)
    gain = made(model, torch.ones(1, 1, SIDE, SIDE, dtype=F64), dtype=F64)[0].abs()
    wanted = model.variances.sqrt()
    return float((gain - wanted).norm() / wanted.norm())


def _few_steps(nfe: int, seed: int) -> Outcome:
    return Outcome(
        _distance(_field(), nfe),
        _distance(Cosine(), nfe),
        f"cosine, {nfe} evaluations",
        f"ddim, {nfe} evaluations, each on uniform times of its own clock, exact scores, 16 x 16 Gaussian field of"
        " spectrum 1 / (1 + k^2)",
        unit="relative Wasserstein-2 distance",
    )


@functools.cache
def _trained(kind: str, seed: int) -> NetworkDenoiser:
    data, _ = load("train")
    torch.manual_seed(seed)
    network = MLP(SHAPE, width=192, depth=3)
    if kind == "cosine":
        return fit(NetworkDenoiser(network, Cosine(), "eps", SHAPE), data, steps=STEPS, batch=BATCH, lr=2e-3, seed=seed)
    dct = DCT(SHAPE)
    states = dct.encode(data, {})
    model = CoordinateDenoiser(network, shortest_path(states, radial(SHAPE)), dct, "eps", SHAPE)
    return fit(model, states, steps=STEPS, batch=BATCH, lr=2e-3, seed=seed)


@functools.cache
def _frechets(seed: int) -> tuple[float, float]:
    real, _ = load("all")
    found = []
    for kind in ("shortest-path", "cosine"):
        model = _trained(kind, seed)
        made = plan(model.process, "ddim", timesteps="uniform", nfe=20)
        drawn = sample(model, SAMPLES, plan=made, seed=seed, batch_size=SAMPLES)
        found.append(frechet(drawn.clamp(-1, 1), real, "digits").value)
    return found[0], found[1]


def _digits(seed: int) -> Outcome:
    return over_seeds(
        _frechets,
        (seed, seed + 1, seed + 2),
        f"cosine, {STEPS * BATCH} images seen",
        f"digits, perceptron of width 192 on pixels, {STEPS * BATCH} images seen, {SAMPLES} samples of ddim with 20"
        " evaluations on uniform times",
        unit="Frechet distance of digit features",
    )


CLAIMS = (
    Claim("shortest-path-band", "its formulas agree with each other and its log variance is a straight line", _band),
    Claim("shortest-path", "is shorter in the Fisher metric than a cosine schedule", _shortest),
    *(
        Claim(
            "shortest-path",
            f"samples a power-law field more exactly than a cosine schedule, at {nfe} evaluations",
            functools.partial(_few_steps, nfe),
        )
        for nfe in NFE
    ),
    Claim("shortest-path", "learns the digits better than a cosine schedule, at equal images seen", _digits, False),
)
