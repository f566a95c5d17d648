"""Task vectors, channel projections, consistency and the search of merging weights.

Methods: deme.
"""

from __future__ import annotations

import copy

import pytest
import torch

from fewstep.denoisers.network import NetworkDenoiser
from fewstep.networks.mlp import MLP
from fewstep.networks.unet import UNet
from fewstep.processes.flow import Flow
from fewstep.training.clusters import level_losses
from fewstep.training.fit import fit
from fewstep.training.merging import (
    Consistency,
    add_projections,
    decouple,
    fold_projections,
    merge,
    search_weights,
)
from fewstep.training.objective import Step


def made(seed: int = 0) -> NetworkDenoiser:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = NetworkDenoiser(MLP((2,), width=16, depth=2), Flow(), "flow", (2,))
        torch.nn.init.normal_(model.network.last.weight)
        return model.eval()


def data() -> torch.Tensor:
    generator = torch.Generator().manual_seed(5)
    return torch.randn(400, 2, generator=generator) * 0.1 + torch.randint(0, 2, (400, 1), generator=generator) * 2 - 1


def flat(model: NetworkDenoiser) -> torch.Tensor:
    named = dict(model.network.named_parameters())
    return torch.cat([named[name].detach().flatten() for name in sorted(named)])


def test_merging_is_the_sum_of_task_vectors():
    base, a, b = made(0), made(1), made(2)
    same = merge(base, [a, b], [0, 0.0])
    assert all(
        torch.equal(x.view(torch.int32), y.view(torch.int32))
        for x, y in zip(base.parameters(), same.parameters(), strict=True)
    )
    torch.testing.assert_close(flat(merge(base, [a, b], [1.0, 0.0])), flat(a))
    expected = flat(base) + 0.25 * (flat(a) - flat(base)) - 0.5 * (flat(b) - flat(base))
    torch.testing.assert_close(flat(merge(base, [a, b], [0.25, -0.5])), expected)
    with pytest.raises(ValueError, match="as many weights"):
        merge(base, [a, b], [1.0])
    other = NetworkDenoiser(MLP((2,), width=8, depth=2), Flow(), "flow", (2,))
    with pytest.raises(ValueError, match="must have the parameter"):
        merge(base, [other], [1.0])


@pytest.mark.parametrize("kind", ["mlp", "unet"])
def test_projections_start_as_nothing_and_fold_away(kind):
    torch.manual_seed(0)
    if kind == "mlp":
        base, shape = made(), (2,)
    else:
        shape = (1, 4, 4)
        base = NetworkDenoiser(UNet(1, 4, width=(8, 12), attention=(2,), classes=None), Flow(), "flow", shape)
        torch.nn.init.normal_(base.network.last.weight)
    x, t = torch.randn(3, *shape), torch.tensor([0.2, 0.5, 0.8])
    names = [name for name, _ in base.network.named_parameters()]
    answer = base(x, t).value
    model = add_projections(copy.deepcopy(base))
    torch.testing.assert_close(model(x, t).value, answer, rtol=0, atol=0)
    added = [p for name, p in model.network.named_parameters() if name.endswith("matrix")]
    assert added
    for matrix in added:
        torch.nn.init.normal_(matrix, std=0.1)
    projected = model(x, t).value
    assert float((projected - answer).detach().abs().max()) > 1e-3
    fold_projections(model)
    torch.testing.assert_close(model(x, t).value, projected, rtol=1e-5, atol=1e-6)
    assert sorted(name for name, _ in model.network.named_parameters()) == sorted(names)


def test_a_projected_layer_sees_its_channels_mixed():
    model = NetworkDenoiser(UNet(2, 4, width=(8,), attention=(), classes=None), Flow(), "flow", (2, 4, 4))
    layer, x = model.network.first, torch.randn(3, 2, 4, 4)
    mix = torch.tensor([[0.5, -1.0], [2.0, 0.25]])
    expected = layer(x + torch.einsum("ij,bjhw->bihw", mix, x))
    add_projections(model)
    layer.parametrizations.weight[0].matrix.data.copy_(mix)
    torch.testing.assert_close(layer(x), expected, rtol=1e-5, atol=1e-5)


def test_consistency_is_the_distance_from_the_base():
    base, other = made(0), made(1)
    x0, eps, t = torch.randn(4, 2), torch.randn(4, 2), torch.rand(4, dtype=torch.float64)
    pair = other.loss_pair(x0, eps, t)
    term = Consistency(base)
    before, _ = base.loss_pair(x0, eps, t)
    expected = (pair[0] - before).square().mean(1)
    torch.testing.assert_close(term(Step(other, x0, eps, t, {}, *pair)), expected)
    assert float(term(Step(base, x0, eps, t, {}, *base.loss_pair(x0, eps, t))).detach().abs().max()) == 0


@pytest.mark.slow
def test_decoupled_copies_fit_their_range_and_stay_near_the_base():
    base = fit(made(), data(), steps=80, batch=64, lr=3e-3)
    options = {"steps": 40, "batch": 64, "lr": 2e-3, "levels": None}
    free = decouple(base, data(), (0.5,), consistency=0.0, outside=0.0, **options)
    held = decouple(base, data(), (0.5,), consistency=10.0, outside=0.0, **options)
    levels = torch.linspace(0.05, 0.45, 9)
    assert float(level_losses(free[0], data(), levels).mean()) < float(level_losses(base, data(), levels).mean())

    def away(model: NetworkDenoiser) -> float:
        x, t = torch.randn(200, 2, generator=torch.Generator().manual_seed(0)), torch.tensor(0.3)
        with torch.no_grad():
            return float((model(x, t).value - base(x, t).value).square().mean())

    assert away(held[0]) < 0.5 * away(free[0])
    assert [name for name, _ in sorted(free[0].network.named_parameters())] == [
        name for name, _ in sorted(base.network.named_parameters())
    ]


def test_the_search_finds_the_best_weights_of_a_quadratic():
    """Three task vectors in turn directions; the loss is the distance from a known combination on the grid."""
    base, tuned = made(0), [made(1), made(2), made(3)]
    target = flat(merge(base, tuned, [0.5, 0.0, 1.0]))
    calls = []

    def loss(model: NetworkDenoiser) -> float:
        calls.append(1)
        return float((flat(model) - target).square().sum())

    weights, best = search_weights(base, tuned, loss, rounds=8)
    assert weights == [0.5, 0.0, 1.0] and best < 1e-8 and len(calls) <= 1 + 8 * 3 * 6
    weights, best = search_weights(base, tuned, lambda model: float((flat(model) - flat(base)).square().sum()))
    assert weights == [0.0, 0.0, 0.0] and best == 0
