"""The embedding: noise level and class, further inputs, late blocks, and networks extended by them."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import nn

import fewstep as fs
from fewstep.networks.dit import DiT
from fewstep.networks.embedding import EXTRAS, Embedding, extended
from fewstep.networks.mlp import MLP
from fewstep.networks.unet import UNet

ALL = {"target": 1, "guidance": 1, "share": 1, "latent": 7}
F64 = torch.float64


def moved(module):
    """The module with all its weights moved, so that every path carries signal."""
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.add_(0.1 * torch.randn(parameter.shape, generator=generator).to(parameter))
    return module.eval()


def given(batch, dtype=torch.float32):
    generator = torch.Generator().manual_seed(2)
    numbers = torch.rand(3, batch, generator=generator).to(dtype)
    latent = torch.randn(batch, 7, generator=generator).to(dtype)
    return dict(zip(EXTRAS, [*numbers, latent], strict=True))


def test_fourier_features_tell_near_noise_levels_apart_without_wild_slopes():
    embedding = Embedding(8, None)
    rates = embedding.frequencies
    assert rates.min() == pytest.approx(0.5) and rates.max() == pytest.approx(32)
    noise = torch.linspace(-3, 3, 601)[:, None] * rates
    features = torch.cat([noise.cos(), noise.sin()], dim=1)
    assert torch.pdist(features).min() > 0.3  # levels a hundredth apart


def test_noise_level_is_not_rounded_to_bfloat16():
    torch.manual_seed(0)
    embedding = Embedding(8, None).bfloat16()
    near = embedding(torch.tensor([1.0, 1.003]), None, 2)  # the same number in bfloat16
    assert near.dtype == torch.bfloat16 and not torch.equal(near[0], near[1])


def test_an_unknown_noise_level_is_a_learned_vector():
    embedding = Embedding(8, 3)
    before = embedding.state_dict().keys()
    with pytest.raises(ValueError, match="not trained for an unknown noise level"):
        embedding(None, None, 2)
    embedding.hide_noise()
    embedding.hide_noise()  # twice is once
    assert embedding.state_dict().keys() == {*before, "unknown"}
    with torch.no_grad():
        embedding.unknown.copy_(torch.arange(8.0))
    label, noise = torch.tensor([0, 1, 3]), torch.tensor([0.3, torch.nan, 0.1])
    mixed, known = embedding(noise, label, 3), embedding(noise.nan_to_num(0.0), label, 3)
    assert torch.equal(mixed[[0, 2]], known[[0, 2]])
    assert torch.equal(mixed[1], torch.arange(8.0) + embedding.label.weight[1])
    assert torch.equal(embedding(None, label, 3)[1], mixed[1])
    mixed.square().sum().backward()
    assert all(bool(torch.isfinite(p.grad).all()) for p in embedding.parameters())


def test_further_inputs_are_added_by_perceptrons_of_their_own():
    embedding = moved(Embedding(8, 3, extras=ALL).double())
    noise, label, told = torch.rand(5, dtype=F64), torch.arange(5) % 4, given(5, F64)
    expected = Embedding.forward(moved_without(embedding), noise, label, 5)
    for name, value in told.items():
        entering = value
        if name != "latent":
            phase = value[:, None] * embedding.frequencies
            entering = torch.cat([phase.cos(), phase.sin()], dim=1)
        expected = expected + embedding.extra[name](entering)
    torch.testing.assert_close(embedding(noise, label, 5, **told), expected, rtol=0, atol=1e-12)
    one = {name: value[0] for name, value in told.items() if name != "latent"}  # one number for the batch
    rows = {name: value.expand(5) for name, value in one.items()}
    assert torch.equal(embedding(noise, label, 5, **one), embedding(noise, label, 5, **rows))


def moved_without(embedding):
    """The embedding without its further inputs."""
    plain = copy.deepcopy(embedding)
    plain.extra, plain.extras = nn.ModuleDict(), {}
    return plain


def test_what_is_left_out_has_its_meaning():
    embedding = moved(Embedding(8, None, extras=ALL))
    noise = torch.rand(3)
    meant = {"target": noise, "guidance": torch.ones(3), "share": torch.ones(()), "latent": torch.zeros(3, 7)}
    assert torch.equal(embedding(noise, None, 3), embedding(noise, None, 3, **meant))
    for name, value in given(3).items():
        assert not torch.allclose(embedding(noise, None, 3, **{name: value}), embedding(noise, None, 3), atol=1e-3), (
            name
        )


def test_an_unknown_target_adds_nothing():
    embedding = Embedding(8, None, extras={"target": 1})
    embedding.hide_noise()
    moved(embedding)
    noise = torch.tensor([0.3, torch.nan])
    out = embedding(noise, None, 2)
    assert torch.equal(out[0], embedding(noise.nan_to_num(0.0), None, 2)[0])
    assert torch.equal(out[1], embedding.unknown) and torch.equal(embedding(None, None, 2)[0], embedding.unknown)


def test_their_phases_are_exact_to_the_dtype():
    """In bfloat16 these levels are one; in float64 a derivative by differences is that of forward mode."""
    half = moved(Embedding(8, None, extras={"target": 1})).bfloat16()
    near = half(torch.zeros(2), None, 2, target=torch.tensor([1.0, 1.003]))
    assert near.dtype == torch.bfloat16 and not torch.equal(near[0], near[1])
    double, h = half.double(), 1e-4
    level = torch.tensor([1.0], dtype=F64)
    _, slope = torch.func.jvp(lambda t: double(t, None, 1), (level,), (torch.ones_like(level),))
    steps = (double(level + h, None, 1) - double(level - h, None, 1)) / (2 * h)
    torch.testing.assert_close(steps, slope, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize(
    "extras, late, message",
    [
        ({"gidance": 1}, 0, "unknown extra input 'gidance': did you mean 'guidance'"),
        ({"target": 2}, 0, "'target' must have the width 1"),
        ({"latent": 0}, 0, "'latent' must have the width 1"),
        ({"share": 1}, 1, "late must be at least 0, and needs the extra input 'target', got late=1"),
        ({"target": 1}, -1, "late must be at least 0"),
        ({"target": 1}, 4, "late must be at most 3, the number of blocks, got 4"),
    ],
)
def test_wrong_extras_raise(extras, late, message):
    with pytest.raises(ValueError, match=message):
        MLP(depth=3, extras=extras, late=late)
    with pytest.raises(ValueError, match=message):
        extended(MLP(depth=3), late, **extras)


def test_inputs_that_a_network_lacks_or_of_other_shapes_raise():
    x, noise = torch.zeros(3, 2), torch.zeros(3)
    with pytest.raises(ValueError, match=r"without the extra input 'share', but it was given \(it has target\)"):
        MLP(extras={"target": 1})(x, noise, share=noise)
    with pytest.raises(ValueError, match=r"without the extra input 'target'.*\(it has none\)"):
        MLP()(x, noise, target=noise)
    network = MLP(extras=ALL)
    with pytest.raises(ValueError, match=r"target must be one number or have shape \(3,\), got \(2,\)"):
        network(x, noise, target=noise[:2])
    with pytest.raises(ValueError, match=r"latent must have shape \(3, 7\), got \(3, 6\)"):
        network(x, noise, latent=torch.zeros(3, 6))


def small(kind):
    made = {
        UNet: lambda: UNet(2, 8, (16, 24), classes=3, vocabulary=5, captions=4),
        DiT: lambda: DiT(2, 8, width=64, depth=2, classes=3),
        MLP: lambda: MLP((2, 8, 8), 16, 3, classes=3),
    }
    torch.manual_seed(0)
    return moved(made[kind]())


def inputs(batch=3):
    generator = torch.Generator().manual_seed(1)
    x, noise = torch.randn(batch, 2, 8, 8, generator=generator), torch.rand(batch, generator=generator)
    return x, noise, torch.arange(batch) % 4


@pytest.mark.parametrize("kind", [UNet, DiT, MLP])
def test_an_extended_network_answers_as_before(kind):
    network, (x, noise, label) = small(kind), inputs()
    before = {name: value.clone() for name, value in network.state_dict().items()}
    expected = network(x, noise, label)
    made = extended(network, **ALL)
    assert torch.equal(made(x, noise, label), expected) and torch.equal(made(x, noise, label, **given(3)), expected)
    assert made.config() == network.config() | {"extras": ALL}
    assert extended(network).config() == network.config() == small(kind).config()
    new = {name for name in made.state_dict() if name.startswith("embedding.extra.")}
    assert made.state_dict().keys() == before.keys() | new and len(new) == 16
    with torch.no_grad():
        moved(made)
    assert not torch.equal(made(x, noise, label, **given(3)), made(x, noise, label))
    assert all(torch.equal(value, before[name]) for name, value in network.state_dict().items())


@pytest.mark.parametrize("kind", [UNet, DiT, MLP])
def test_late_blocks_read_the_target(kind):
    """Each block gets the embedding of the one level or of the other, and no weights are new."""
    network, (x, noise, label) = small(kind), inputs()
    target, names = given(3)["target"], list(network.blocks)
    expected, aim = network(x, noise, label), {}
    for late in range(len(names) + 1):
        made = extended(network, late, target=1)
        assert made.state_dict().keys() == network.state_dict().keys() or not late
        assert torch.equal(made(x, noise, label), expected)
        assert torch.equal(made(x, noise, label, target=noise), expected)
        told = []
        for block in made.blocks.values():
            block.register_forward_pre_hook(lambda block, args, told=told: told.append(args[1]))
        out = made(x, noise, label, target=target)
        assert all(torch.equal(one, told[0]) for one in told[: len(names) - late])
        assert all(torch.equal(one, told[-1]) for one in told[len(names) - late :])
        assert torch.equal(told[0], told[-1]) == (late in (0, len(names)))
        aim[late] = out
    assert not torch.equal(aim[1], expected) and not torch.equal(aim[1], aim[len(names)])
    # All blocks late: the network at the target's level, the last modulation included.
    assert torch.equal(aim[len(names)], network(x, target, label))


def test_extended_keeps_dtype_mode_and_the_unknown_level():
    network = MLP(depth=2).bfloat16().train()
    network.embedding.hide_noise()
    with torch.no_grad():
        network.embedding.unknown.add_(1.0)
    made = extended(network, late=1, target=1, guidance=1)
    assert made.training and {p.dtype for p in made.parameters()} == {torch.bfloat16}
    x = torch.randn(3, 2).bfloat16()
    assert torch.equal(made(x, None), network(x, None))
    noise = torch.tensor([0.1, torch.nan, 0.2])
    assert torch.equal(made(x, noise, target=noise), network(x, noise))
    again = MLP(**{key: value for key, value in made.config().items() if key != "network"})
    assert again.config() == made.config() == network.config() | {"extras": {"target": 1, "guidance": 1}, "late": 1}


def test_what_was_added_first_does_not_matter():
    """Parameters keep one order, on which an optimiser's moments rely."""
    made = extended(moved(extended(small(MLP), latent=7, share=1)), target=1)
    assert list(made.config()["extras"]) == ["target", "share", "latent"]
    again = MLP(**{key: value for key, value in made.config().items() if key != "network"})
    assert [name for name, _ in again.named_parameters()] == [name for name, _ in made.named_parameters()]
    twice = extended(made, share=1)
    assert twice.config() == made.config()
    assert all(torch.equal(value, twice.state_dict()[name]) for name, value in made.state_dict().items())


def test_a_network_can_be_extended_over_its_own_weights():
    network = moved(MLP((2,), 8, 3, 3))
    made = extended(network, copied=False, target=1)
    own, before = dict(made.named_parameters()), dict(network.named_parameters())
    assert all(own[name] is value for name, value in before.items())
    assert own.keys() - before.keys() == {
        f"embedding.extra.target.{n}.{what}" for n in (0, 2) for what in ("weight", "bias")
    }
    x, noise, label = torch.randn(4, 2), torch.rand(4), torch.arange(4) % 3
    assert torch.equal(made(x, noise, label, target=torch.rand(4)), network(x, noise, label))
    assert not network.embedding.extras


def test_what_cannot_be_extended_raises():
    made = extended(MLP(depth=3), late=2, target=1, latent=7)
    with pytest.raises(ValueError, match=r"has a target already \(late=2\), got late=1"):
        extended(made, late=1)
    with pytest.raises(ValueError, match="'latent' has the width 7 in this network already, got 8"):
        extended(made, latent=8)
    with pytest.raises(ValueError, match="Linear has no embedding of fewstep.networks"):
        extended(nn.Linear(2, 2), target=1)


@pytest.mark.parametrize("name", ["digits", "digits-dit", "shapes"])
def test_the_models_that_ship_can_be_extended(name):
    model = fs.load(name)
    network, generator = model.network, torch.Generator().manual_seed(0)
    x, noise = torch.randn(2, *model.shape, generator=generator), torch.tensor([0.2, -0.7])
    with torch.no_grad():
        expected = network(x, noise)
        full, decoupled = extended(network, **ALL), extended(network, late=3, target=1)
        assert torch.equal(full(x, noise), expected) and torch.equal(full(x, noise, **given(2)), expected)
        assert torch.equal(decoupled(x, noise, target=noise), expected)
        assert not torch.equal(decoupled(x, noise, target=noise - 0.3), expected)
