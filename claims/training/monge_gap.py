"""Claims of fewstep/training/monge_gap.py."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn

from claims.common import F64, Claim, Flow, Outcome, arms, compared, experiment, plan
from claims.trained import NetworkDenoiser, fresh
from claims.training.reflow import reflowed
from claims.transports import PLANE, STEPS, noises, plane_flow
from fewstep.training.monge_gap import monge_gap, sinkhorn_divergence

D, POINTS, ITERATIONS, FACTOR = 3, 128, 200, 1.0


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


def _perceptron() -> nn.Module:
    return nn.Sequential(nn.Linear(D, 64), nn.SiLU(), nn.Linear(64, 64), nn.SiLU(), nn.Linear(64, D))


def _fitted(factor: float, seed: int) -> float:
    """Mean squared error of a one-step map, fitted to the target's points alone, against the optimal map."""
    (shift, matrix), generator = _gaussians(seed), torch.Generator().manual_seed(seed + 1)
    network = fresh(_perceptron, seed)
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


def _regularised(seed: int) -> Outcome:
    about = f"perceptron, Gaussians in {D} dimensions, {ITERATIONS} steps of {POINTS} points, factor {FACTOR:g}"
    against, unit = "the Sinkhorn divergence alone", "mean squared distance from the optimal map"
    return arms(seed, _fitted, FACTOR, 0.0, against, about, unit=unit)


FLOWS: dict[str, Callable[[int], NetworkDenoiser]] = {
    "reflowed": reflowed,
    "coupled": lambda s: plane_flow(s, "minibatch-ot"),
    "independent": plane_flow,
    "twice as long": lambda s: plane_flow(s, steps=2 * STEPS),
}


def _of_flow(name: str, seed: int) -> float:
    noise = noises(seed, (2,))
    return float(monge_gap(noise, plan(Flow(), "heun", 25, "uniform")(FLOWS[name](seed), noise)))


@experiment
def _flows(seed: int, ours: str, theirs: str, against: str, what: str) -> Outcome:
    return arms(seed, _of_flow, ours, theirs, against, f"{PLANE}, {what}; 1024 noises and their ends", unit="Monge gap")


CLAIMS = (
    Claim("monge-gap", "near zero for the optimal map, large for a random coupling", _known),
    Claim("monge-gap", "as a regulariser, leads a one-step map to the optimal one", _regularised, quick=False),
    Claim("monge-gap", "tells a reflowed flow from its teacher",
          _flows("reflowed", "twice as long", "a flow of as many steps on independent noise", "reflowed as long again"),
          quick=False),
    Claim("monge-gap", "tells a flow trained on coupled noise from one on independent noise",
          _flows("coupled", "independent", "a flow on independent noise", "coupled by minibatch-ot"), quick=False),
)  # fmt: skip
