"""The perceptron "mlp": shapes, conditions, configuration."""

from __future__ import annotations

import pytest
import torch

from fewstep.networks.mlp import MLP


def moved(network: MLP) -> MLP:
    generator = torch.Generator().manual_seed(0)
    network = network.double().eval()
    with torch.no_grad():
        for parameter in network.parameters():
            parameter.add_(0.2 * torch.randn(parameter.shape, generator=generator, dtype=torch.float64))
    return network


@pytest.mark.parametrize("shape", [(2,), (5,), (3, 2, 4)])
def test_a_batch_is_its_single_rows(shape):
    network = moved(MLP(shape, 16, 2, classes=4, picture=3))
    x = torch.randn(3, *shape, dtype=torch.float64)
    noise, label = torch.tensor([0.1, 0.5, 2.0]), torch.tensor([0, 3, 4])
    y = torch.randn(3, 3, dtype=torch.float64)
    batch = network(x, noise, label, y)
    assert batch.shape == x.shape
    for i in range(3):
        alone = network(x[i : i + 1], noise[i : i + 1], label[i : i + 1], y[i : i + 1])
        torch.testing.assert_close(alone, batch[i : i + 1], rtol=1e-10, atol=1e-12)


def test_out_stacks_answers_and_gradient_reaches_everything():
    network = moved(MLP((2, 3), 16, 2, picture=4, out=2)).train()
    out = network(torch.randn(5, 2, 3).double(), torch.tensor(0.3), y=torch.randn(5, 4))
    assert out.shape == (5, 4, 3)
    out.square().sum().backward()
    assert all(p.grad is not None and p.grad.abs().max() > 0 for p in network.parameters())


def test_the_configuration_has_the_picture_and_the_answers():
    network = MLP((2, 3), 16, 2, classes=3, picture=1, out=2)
    config = network.config()
    assert MLP(**{key: value for key, value in config.items() if key != "network"}).config() == config


def test_faulty_calls():
    network, x = MLP((2,), 8, 1, picture=3), torch.zeros(4, 2)
    with pytest.raises(ValueError, match=r"x must have shape \(B, 2\), got \(4, 3\)"):
        network(torch.zeros(4, 3), torch.tensor(0.0))
    with pytest.raises(ValueError, match="y must hold 3 numbers a sample, got nothing"):
        network(x, torch.tensor(0.0))
    with pytest.raises(ValueError, match="built without a picture"):
        MLP((2,), 8, 1)(x, torch.tensor(0.0), y=torch.zeros(4, 3))
    with pytest.raises(ValueError, match="must be positive"):
        MLP((2,), 0)
