"""Claims of fewstep/training/monge_gap.py."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from claims.claim import Claim, Outcome, over_seeds
from claims.problems import F64
from claims.training.reflow import reflowed
from claims.transports import PLANE, SEEDS, STEPS, noises, plane_flow
from fewstep.denoisers.network import NetworkDenoiser
from fewstep.processes.flow import Flow
from fewstep.sampling.build import plan
from fewstep.training.monge_gap import monge_gap, sinkhorn_divergence

D, N, ITERATIONS, FACTOR = 3, 128, 200, 1.0


def _gaussians(seed: int) -> tuple[Tensor, Tensor]:
    """A shift and a symmetric matrix with eigenvalues 0.3 to 1.7: the optimal map `m + A x` from N(0, 1)."""
    generator = torch.Generator().manual_seed(seed)
    basis, _ = torch.linalg.qr(torch.randn(D, D, generator=generator, dtype=F64))
    matrix = basis @ torch.diag(torch.linspace(0.3, 1.7, D, dtype=F64)) @ basis.T
    return torch.randn(D, generator=generator, dtype=F64), matrix


def _known(seed: int) -> Outcome:
    shift, matrix = _gaussians(seed)
    generator = torch.Generator().manual_seed(seed + 1)
    x = torch.randn(512, D, generator=generator, dtype=F64)
    best = shift + x @ matrix
    mixed = best[torch.randperm(512, generator=generator)]
    return Outcome(
        abs(float(monge_gap(x, best))),
        float(monge_gap(x, mixed)),
        "the same points, coupled at random",
        f"512 points of a Gaussian in {D} dimensions and their images",
        unit="Monge gap",
    )


def _fitted(seed: int, factor: float) -> float:
    """Mean squared error of a one-step map, fitted to the target's points alone, against the optimal map."""
    shift, matrix = _gaussians(seed)
    generator = torch.Generator().manual_seed(seed + 1)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        network = nn.Sequential(nn.Linear(D, 64), nn.SiLU(), nn.Linear(64, 64), nn.SiLU(), nn.Linear(64, D))
    optimizer = torch.optim.Adam(network.parameters(), lr=3e-3)

    def draw(n: int = N) -> Tensor:
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
    return over_seeds(
        lambda s: (_fitted(s, FACTOR), _fitted(s, 0.0)),
        [seed + s for s in SEEDS],
        "the Sinkhorn divergence alone",
        f"perceptron, Gaussians in {D} dimensions, {ITERATIONS} steps of {N} points, factor {FACTOR:g}",
        unit="mean squared distance from the optimal map",
    )


def _of_flow(model: NetworkDenoiser, seed: int) -> float:
    noise = noises(seed, (2,))
    return float(monge_gap(noise, plan(Flow(), "heun", 25, "uniform")(model, noise)))


def _reflowed(seed: int) -> Outcome:
    return over_seeds(
        lambda s: (_of_flow(reflowed(s), s), _of_flow(plane_flow(s, steps=2 * STEPS), s)),
        [seed + s for s in SEEDS],
        "a flow of as many steps on independent noise",
        f"{PLANE}, reflowed as long again; 1024 noises and their ends",
        unit="Monge gap",
    )


def _coupled(seed: int) -> Outcome:
    return over_seeds(
        lambda s: (_of_flow(plane_flow(s, "minibatch-ot"), s), _of_flow(plane_flow(s), s)),
        [seed + s for s in SEEDS],
        "a flow on independent noise",
        f"{PLANE}, coupled by minibatch-ot; 1024 noises and their ends",
        unit="Monge gap",
    )


CLAIMS = (
    Claim("monge-gap", "near zero for the optimal map, large for a random coupling", _known),
    Claim("monge-gap", "as a regulariser, leads a one-step map to the optimal one", _regularised, quick=False),
    Claim("monge-gap", "tells a reflowed flow from its teacher", _reflowed, quick=False),
    Claim("monge-gap", "tells a flow trained on coupled noise from one on independent noise", _coupled, quick=False),
)
