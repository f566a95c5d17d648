"""Clusters of noise levels against brute force; losses and gradients level by level.

Methods: interval-clusters.
"""

from __future__ import annotations

import itertools

import pytest
import torch

from fewstep.denoisers.network import NetworkDenoiser
from fewstep.networks.mlp import MLP
from fewstep.processes.flow import Flow
from fewstep.processes.vp import VP
from fewstep.training.clusters import affinity, cluster_of, clusters, interval_clusters, level_losses
from fewstep.training.fit import fit
from fewstep.training.objective import Objective

F64 = torch.float64


def scatter(points: torch.Tensor) -> float:
    return float((points - points.mean(0)).square().sum())


def brute_force(points: torch.Tensor, k: int) -> float:
    """The least cost over every way to cut a row of points into k runs."""
    n = len(points)
    return min(
        sum(scatter(points[a:b]) for a, b in itertools.pairwise((0, *cuts, n)))
        for cuts in itertools.combinations(range(1, n), k - 1)
    )


@pytest.mark.parametrize("k", [1, 2, 3, 5, 11])
@pytest.mark.parametrize("seed", [0, 1, 2])
def test_the_programme_finds_the_optimum(seed, k):
    points = torch.randn(11, 3, generator=torch.Generator().manual_seed(seed), dtype=F64)
    cuts = interval_clusters(points @ points.T, k)
    assert len(cuts) == k - 1 and cuts == sorted(set(cuts)) and all(0 < cut < 11 for cut in cuts)
    found = sum(scatter(points[a:b]) for a, b in itertools.pairwise((0, *cuts, 11)))
    assert found == pytest.approx(brute_force(points, k), abs=1e-9)


def test_clear_groups_are_found():
    points = torch.tensor([0.0, 0.1, 0.2, 5.0, 5.1, 9.0, 9.1, 9.2, 9.3], dtype=F64)[:, None]
    assert interval_clusters(points @ points.T, 3) == [3, 5]
    cosines = torch.block_diag(torch.ones(4, 4), torch.ones(2, 2), torch.ones(5, 5))
    assert interval_clusters(cosines, 3) == [4, 6]


def test_time_makes_equal_clusters_and_log_snr_does_not():
    process = VP()
    cuts = clusters(process, 4, "time")
    torch.testing.assert_close(torch.tensor(cuts), torch.tensor([0.25, 0.5, 0.75]), rtol=0, atol=0.01)
    by_noise = clusters(process, 4, "log-snr")
    assert list(by_noise) == sorted(by_noise) and by_noise[0] < 0.2  # log-SNR falls fastest near the data
    assert len(clusters(Flow(), 3, "log-snr")) == 2  # infinite at the ends


def test_cluster_of():
    t = torch.tensor([[0.0, 0.2], [0.5, 0.9]], dtype=F64)
    assert cluster_of(t, (0.2, 0.6)).tolist() == [[0, 1], [1, 2]]
    assert cluster_of(t, ()).tolist() == [[0, 0], [0, 0]]


def made(seed: int = 0) -> NetworkDenoiser:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return NetworkDenoiser(MLP((2,), width=24, depth=2), Flow(), "flow", (2,))


def points(n: int = 400) -> torch.Tensor:
    generator = torch.Generator().manual_seed(5)
    return torch.randn(n, 2, generator=generator) * 0.1 + torch.randint(0, 2, (n, 2), generator=generator)


def test_affinity_is_the_cosine_of_gradients_and_falls_with_the_gap():
    model, data, levels = fit(made(), points(), steps=60, lr=3e-3), points(), torch.linspace(0.05, 0.95, 7)
    model.train()
    found = affinity(model, data, levels)
    torch.testing.assert_close(found.diagonal(), torch.ones(7, dtype=F64))
    torch.testing.assert_close(found, found.T)
    near = torch.stack([found.diagonal(1).mean(), found.diagonal(5).mean()])
    assert near[0] > near[1] + 0.1
    eps = torch.randn(data.shape, generator=torch.Generator().manual_seed(0))  # of the same seed
    gradients = []
    for t in levels[[0, 4]]:
        model.zero_grad()
        Objective(model)(data, eps, t.double().expand(len(data)), {}).mean().backward()
        gradients.append(torch.cat([p.grad.flatten() for p in model.parameters()]))
    expected = torch.nn.functional.cosine_similarity(*gradients, dim=0)
    torch.testing.assert_close(found[0, 4].float(), expected, rtol=1e-4, atol=1e-5)
    assert len(clusters(model.process, 3, found, levels)) == 2


def test_level_losses_are_the_objectives():
    model, data, levels = made(), points(), torch.tensor([0.1, 0.6])
    found = level_losses(model, data, levels, seed=3)
    # an untrained network answers zero, so the loss is the mean square of eps - x0 at every level
    eps = torch.randn(data.shape, generator=torch.Generator().manual_seed(3))
    expected = (eps - data).square().mean().double()
    torch.testing.assert_close(found, expected.expand(2), rtol=1e-5, atol=0)
    assert model.training


def test_bad_input():
    with pytest.raises(ValueError, match="1 to 3 clusters"):
        interval_clusters(torch.eye(3), 4)
    with pytest.raises(ValueError, match="log-snr"):
        clusters(VP(), 3, "log-srn")
    with pytest.raises(ValueError, match="needs the levels"):
        clusters(VP(), 2, torch.eye(4))
    with pytest.raises(ValueError, match="square"):
        clusters(VP(), 2, torch.eye(4), torch.tensor([0.1, 0.2, 0.3]))
