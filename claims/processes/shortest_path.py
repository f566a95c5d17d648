"""Claims of fewstep/processes/shortest_path.py."""

from __future__ import annotations

import functools

import torch
from torch import Tensor

from claims.claim import Claim, Outcome, arms, experiment, slow
from claims.common import F64, frechet, gap, plan, sample
from claims.duels import formulas
from claims.parts import Answers, Cosine, Process
from claims.trained import MLP, CoordinateDenoiser, NetworkDenoiser, fit, fresh
from fewstep.data.digits import load
from fewstep.denoisers.coordinates import DCT
from fewstep.processes.shortest_path import ShortestPath, ShortestPathBand, radial, shortest_path

SIDE = 16
SHAPE = (1, 8, 8)
STEPS, BATCH, SAMPLES = 800, 64, 1000


@functools.cache
def _field() -> ShortestPath:
    """Pictures of 16 x 16 whose spectrum falls with the square of the frequency, a quarter of unit variance a pixel."""
    frequency = torch.arange(SIDE, dtype=F64)
    power = 1 / (1 + frequency[:, None] ** 2 + frequency**2)
    power = power * 0.25 * SIDE**2 / power.sum()
    return ShortestPath(tuple(power.flatten().tolist()), tuple(range(SIDE**2)), (1, SIDE, SIDE))


def _length(process: Process) -> float:
    """Of the path of the field's spectrum, by sums: the integral of sqrt(sum (d log v)^2 / 2)."""
    variances, t = torch.tensor(_field().variances, dtype=F64), torch.linspace(0.0, 1.0, 4001, dtype=F64)
    alpha, sigma = (value.reshape(len(t), -1) for value in (process.alpha(t), process.sigma(t)))
    return float(((alpha**2 * variances + sigma**2).log().diff(dim=0).square().sum(1) / 2).sqrt().sum())


def _shortest(seed: int) -> Outcome:
    field = _field()
    ours = ShortestPath(field.variances, field.index, field.shape, t_max=1.0)
    about = "16 x 16 Gaussian field, spectrum 1 / (1 + k^2), from the data to white noise"
    return Outcome(_length(ours), _length(Cosine(t_max=1.0)), "cosine", about, unit="Fisher length")


def _distance(process: Process, nfe: int) -> float:
    """Relative Wasserstein-2 distance of the samples from the field. The map is linear: one gain a mode."""
    variances = torch.tensor(_field().variances, dtype=F64).reshape(1, SIDE, SIDE)

    def answer(x: Tensor, t: Tensor) -> Tensor:  # exact, in the cosine transform's basis, under either process
        alpha, sigma = process.alpha(t), process.sigma(t)
        return alpha * variances / (alpha**2 * variances + sigma**2) * x

    model = Answers(answer, process, (1, SIDE, SIDE))
    made = plan(process, "ddim", timesteps="uniform", nfe=nfe)
    gain = made(model, torch.ones(1, 1, SIDE, SIDE, dtype=F64), dtype=F64)[0].abs()
    return gap(gain, variances.sqrt())


@experiment
def _few_steps(seed: int, nfe: int) -> Outcome:
    about = f"ddim, {nfe} evaluations, each on uniform times of its own clock, exact scores, 16 x 16 Gaussian field of"
    about += " spectrum 1 / (1 + k^2)"
    ours, theirs = _distance(_field(), nfe), _distance(Cosine(), nfe)
    return Outcome(ours, theirs, f"cosine, {nfe} evaluations", about, unit="relative Wasserstein-2 distance")


@functools.cache
def _trained(kind: str, seed: int) -> NetworkDenoiser:
    states, network = load("train")[0], fresh(MLP, seed, SHAPE, width=192, depth=3)
    model = NetworkDenoiser(network, Cosine(), "eps", SHAPE)
    if kind == "shortest-path":
        states = DCT(SHAPE).encode(states, {})
        model = CoordinateDenoiser(network, shortest_path(states, radial(SHAPE)), DCT(SHAPE), "eps", SHAPE)
    return fit(model, states, steps=STEPS, batch=BATCH, lr=2e-3, seed=seed)


def _frechet(kind: str, seed: int) -> float:
    model = _trained(kind, seed)
    made = plan(model.process, "ddim", timesteps="uniform", nfe=20)
    drawn = sample(model, SAMPLES, plan=made, seed=seed, batch_size=SAMPLES)
    return frechet(drawn.clamp(-1, 1), load("all")[0], "digits").value


CLAIMS = (
    Claim("shortest-path-band", "its formulas agree with each other and its log variance is a straight line",
          formulas(ShortestPathBand(variance=0.02), "variance against lambda^(1 - t)",
                   lambda p, t: (p.alpha(t) ** 2 * 0.02 + p.sigma(t) ** 2) / 0.02 ** (1 - t) - 1)),
    Claim("shortest-path", "is shorter in the Fisher metric than a cosine schedule", _shortest),
    *(Claim("shortest-path", f"samples a power-law field more exactly than a cosine schedule, at {nfe} evaluations",
            _few_steps(nfe)) for nfe in (4, 8, 16)),
    slow("shortest-path", "learns the digits better than a cosine schedule, at equal images seen", 
         arms(_frechet, "shortest-path", "cosine", f"cosine, {STEPS * BATCH} images seen",
              f"digits, perceptron of width 192 on pixels, {STEPS * BATCH} images seen, {SAMPLES} samples of ddim with"
              " 20 evaluations on uniform times", unit="Frechet distance of digit features")),
)  # fmt: skip
