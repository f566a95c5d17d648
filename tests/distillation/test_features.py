"""Features of named blocks, read beside the answer."""

from __future__ import annotations

import pytest
import torch
from distillation.matched import perceptron, shaken
from torch.nn import functional

from fewstep.denoisers.network import NetworkDenoiser
from fewstep.distillation.features import Read, default_blocks
from fewstep.networks.unet import UNet
from fewstep.processes.ve import EDM


def test_it_reads_blocks_and_leaves_the_answer_as_it_is():
    model = shaken(perceptron(classes=3))
    x, t, label = torch.randn(5, 2, generator=torch.Generator().manual_seed(0)), torch.ones(5), torch.arange(5) % 3
    answer, found = Read(model, ["block.2", "block.0"])(x, t, {"label": label})
    assert torch.equal(answer.x0, model(x, t, label=label).x0)
    assert list(found) == ["block.2", "block.0"]
    # By hand: what enters the first block, and the way from the last one to the answer.
    c_in, c_noise, c_skip, c_out = model._edm(x, t)
    network = model.network
    embedding = functional.silu(network.embedding(c_noise.float(), label, 5))
    first = network.block[0](network.first(c_in.float() * x), embedding)
    assert torch.equal(found["block.0"], first)
    whole = c_skip * x + c_out * network.last(network.last_norm(found["block.2"]))
    torch.testing.assert_close(answer.x0, whole.float())


def test_gradients_run_through_the_features_into_the_models_weights():
    model = shaken(perceptron())
    _, found = Read(model, ["block.1"])(torch.ones(2, 2), torch.ones(2), {})
    (gradient,) = torch.autograd.grad(found["block.1"].sum(), [model.network.first.weight])
    assert gradient.abs().sum() > 0


def test_it_follows_the_models_weights():
    model = perceptron()
    read = Read(model, ["block.0"])
    before = read(torch.ones(1, 2), torch.ones(1), {})[1]["block.0"]
    shaken(model)
    assert not torch.equal(read(torch.ones(1, 2), torch.ones(1), {})[1]["block.0"], before)


def test_it_knows_the_sizes_and_the_middle():
    assert default_blocks(perceptron()) == ("block.1",)
    assert Read(perceptron(), ["block.1"]).sizes((2,), {}) == {"block.1": (1, 8)}
    unet = NetworkDenoiser(
        UNet(channels=1, width=(4, 8), attention=(), classes=None), EDM(), "x0", (1, 4, 6), precondition="edm"
    )
    block = default_blocks(unet)[0]
    assert Read(unet, [block]).sizes((1, 4, 6), {})[block][0] == 1
    assert len(Read(unet, [block]).sizes((1, 4, 6), {})[block]) == 4


def test_an_unknown_block_and_a_network_without_blocks_are_refused():
    with pytest.raises(ValueError, match="did you mean 'block.1'"):
        Read(perceptron(), ["blok.1"])
    bare = NetworkDenoiser(torch.nn.Linear(2, 2), EDM(), "x0", (2,))
    with pytest.raises(ValueError, match="no network in this model names its blocks"):
        default_blocks(bare)
