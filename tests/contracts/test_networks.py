"""The contract of every network of `networks/`: registered networks enter by themselves.

A card's facts say what to run it on: `small`, the arguments of a small one (with `classes` where it takes labels), and
`shape`, that of one sample.
"""

from __future__ import annotations

import inspect
import json

import pytest
import torch
from sampled import sampled
from torch import nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils._python_dispatch import TorchDispatchMode

from fewstep.core.methods import find, methods
from fewstep.networks.blocks import blocks_of
from fewstep.networks.common import Attend
from fewstep.networks.embedding import EXTRAS, extended
from fewstep.networks.surgery import Keep, replaced, without

CARDS = methods("networks")
each = pytest.mark.parametrize("card", CARDS, ids=[card.name for card in CARDS])
READS = {"_local_scalar_dense", "nonzero", "_linalg_check_errors", "equal", "is_nonzero"}


def built(card) -> nn.Module:
    """A small one, its zero-initialised layers moved, so that every path carries signal."""
    torch.manual_seed(0)
    network = find(card.name, "networks")(**card.facts["small"])
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in network.parameters():
            parameter.add_(0.05 * torch.randn(parameter.shape, generator=generator))
    return network.eval()


def inputs(card, batch: int = 3) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(1)
    return torch.randn(batch, *card.facts["shape"], generator=generator), torch.rand(batch, generator=generator)


def labels(card, batch: int = 3) -> dict[str, torch.Tensor]:
    """The last of a batch has no label, which a network of `classes` is told by their number."""
    classes = card.facts["small"].get("classes")
    return {"label": (torch.arange(batch) - batch + 1) % (classes + 1)} if classes else {}


@sampled("card, dtype", CARDS, [torch.float32, torch.float64, torch.bfloat16])
def test_shape_and_dtype_are_kept(card, dtype):
    network, (x, noise) = built(card), inputs(card)
    exact = network(x, noise, **labels(card))
    out = network.to(dtype)(x.to(dtype), noise, **labels(card))
    assert out.shape == x.shape and out.dtype == dtype
    close = 0.1 if dtype == torch.bfloat16 else 1e-4
    assert bool((out - exact).abs().max() < close * exact.abs().max())


@each
def test_conditions_are_optional_and_reach_the_output(card):
    network, (x, noise) = built(card), inputs(card, 1)
    parameters = list(inspect.signature(network.forward).parameters.values())
    assert [p.name for p in parameters[:2]] == ["x", "noise"]
    assert all(p.default is None for p in parameters[2:-1])
    assert parameters[-1].kind is parameters[-1].VAR_KEYWORD  # further inputs, by name
    plain = network(x, noise)
    assert torch.equal(network(x, noise[0]), plain)  # one number for the whole batch
    assert not torch.allclose(network(x, noise + 0.1), plain, atol=1e-5)
    if classes := card.facts["small"].get("classes"):
        outs = [network(x, noise, torch.tensor([label])) for label in range(classes + 1)]
        assert torch.equal(outs[classes], plain)
        for first in range(classes + 1):
            assert all(not torch.allclose(outs[first], outs[second], atol=1e-5) for second in range(first))
        with pytest.raises(ValueError, match=f"label must be 1 integers in 0 to {classes}"):
            network(x, noise, torch.tensor([0.0]))
    with pytest.raises(ValueError, match="noise must be one number"):
        network(x, torch.zeros(4))


@each
def test_samples_of_a_batch_do_not_meet(card):
    network, (x, noise) = built(card).double(), inputs(card, 5)
    x, named = x.double(), labels(card, 5)
    alone = [
        network(x[[row]], noise[[row]], **{name: value[[row]] for name, value in named.items()}) for row in range(5)
    ]
    torch.testing.assert_close(network(x, noise, **named), torch.cat(alone), rtol=0, atol=1e-12)


@each
def test_gradient_reaches_every_parameter(card):
    network, classes = built(card), card.facts["small"].get("classes", 0)
    x, noise = inputs(card, classes + 2)
    network(x, noise, **labels(card, classes + 2)).square().sum().backward()
    for name, parameter in network.named_parameters():
        # Every row of the table of labels too: each class and "no label" is in the batch.
        rows = parameter.grad if name.endswith("label.weight") else parameter.grad.view(1, -1)
        assert rows.abs().sum(1).all(), name


class Seen(TorchDispatchMode):
    def __init__(self):
        super().__init__()
        self.names = set()

    def __torch_dispatch__(self, op, types, args=(), kwargs=None):
        self.names.add(op.overloadpacket.__name__)
        return op(*args, **(kwargs or {}))


@each
def test_nothing_is_read_from_the_device(card):
    network, (x, noise) = built(card), inputs(card)
    with Seen() as seen, torch.no_grad():
        network(x, noise, **labels(card))
        network(x, noise)
    assert seen.names & {"addmm", "mm", "convolution"} and not seen.names & READS


@each
def test_configuration_makes_the_same_network(card):
    network, (x, noise) = built(card), inputs(card)
    config = json.loads(json.dumps(network.config()))
    assert config.pop("network") == card.name
    assert set(config) | {"extras", "late"} == set(inspect.signature(type(network)).parameters)
    assert config == config | json.loads(json.dumps(card.facts["small"]))
    again = find(card.name, "networks")(**config)
    again.load_state_dict(network.state_dict())
    assert again.config() == network.config()
    assert torch.equal(again.eval()(x, noise, **labels(card)), network(x, noise, **labels(card)))


class Ran(nn.Module):
    """Runs a block, and says which one, on what, and what came out."""

    def __init__(self, inner, name, seen):
        super().__init__()
        self.inner, self.name, self.seen = inner, name, seen

    def forward(self, *args):
        out = self.inner(*args)
        self.seen.append((self.name, args, out))
        return out


class Mixed(nn.Module):
    """Runs a block and gives each sample of the batch the answer of another, which no norm behind it undoes."""

    def __init__(self, inner):
        super().__init__()
        self.inner = inner

    def forward(self, *args):
        return self.inner(*args).flip(0)


@each
def test_blocks_are_named_in_order_and_run_once(card):
    network, (x, noise), seen = built(card), inputs(card), []
    assert network.blocks and set(network.skippable) <= set(network.blocks)
    assert all(network.get_submodule(name) is block for name, block in network.blocks.items())
    again = replaced(network, {name: Ran(block, name, seen) for name, block in network.blocks.items()})
    assert torch.equal(again(x, noise), network(x, noise))
    assert [name for name, _, _ in seen] == list(network.blocks)
    for name, args, out in seen:
        assert len(args) == 2 and isinstance(out, torch.Tensor), name
        assert name not in network.skippable or out.shape == args[0].shape, name
    described = blocks_of(network)
    assert list(described) == list(network.blocks) == [block.path for block in described.values()]
    assert [name for name, block in described.items() if block.skippable] == list(network.skippable)
    rows = {block.level: set() for block in described.values()}
    for name, args, _ in seen:
        rows[described[name].level].add(args[0].shape[-1])
    assert all(len(sides) == 1 for sides in rows.values()) and sorted(rows) == list(range(len(rows)))


@each
def test_a_block_replaced_by_itself_changes_no_bit(card):
    network, (x, noise) = built(card), inputs(card)
    expected, before = network(x, noise, **labels(card)), dict(network.named_modules())
    for name, block in network.blocks.items():
        same = replaced(network, {name: block})
        assert same is not network and same.state_dict().keys() == network.state_dict().keys()
        assert torch.equal(same(x, noise, **labels(card)), expected), name
    assert dict(network.named_modules()) == before


@each
def test_every_block_matters(card):
    network, (x, noise) = built(card), inputs(card, 2)
    expected = network(x, noise)
    for name, block in network.blocks.items():
        assert not torch.allclose(replaced(network, {name: Mixed(block)})(x, noise), expected, atol=1e-3), name


@each
def test_skippable_blocks_can_be_left_out(card):
    network, (x, noise) = built(card), inputs(card)
    expected, found = network(x, noise), blocks_of(network)
    for name in network.skippable:
        out = without(network, [found[name]])(x, noise)
        assert out.shape == x.shape and not torch.equal(out, expected), name
    assert without(network, [found[name] for name in network.skippable])(x, noise).shape == x.shape
    assert torch.equal(network(x, noise), expected)


@each
def test_attention_among_the_blocks_has_its_seam(card):
    network, (x, noise), store = built(card), inputs(card), {}
    cores = [
        f"{name}.{path}"
        for name, block in network.blocks.items()
        for path, module in block.named_modules()
        if isinstance(module, Attend)
    ]
    assert all(path.endswith(".core") for path in cores)
    parts = {path: Keep(network.get_submodule(path), store, path) for path in cores}
    assert torch.equal(replaced(network, parts)(x, noise), network(x, noise))
    assert list(store) == cores and all(out.ndim == 4 for out in store.values())


@each
def test_further_inputs_change_nothing_at_first_and_reach_the_output_then(card):
    network, (x, noise) = built(card), inputs(card)
    expected, names, given = network(x, noise, **labels(card)), {}, {}
    for name in EXTRAS:
        names[name] = 7 if name == "latent" else 1
        given[name] = torch.ones(3, 7) if name == "latent" else noise / 2
    made = extended(network, **names)
    assert torch.equal(made(x, noise, **labels(card), **given), expected)
    with torch.no_grad():
        for perceptron in made.embedding.extra.values():
            perceptron[2].weight.normal_(generator=torch.Generator().manual_seed(0))
    expected = made(x, noise, **labels(card))
    for name, value in given.items():
        assert not torch.allclose(made(x, noise, **labels(card), **{name: value}), expected, atol=1e-4), name
    config = json.loads(json.dumps(made.config()))
    assert config.pop("extras") == names and config == network.config()
    made(x, noise, **labels(card), **given).square().sum().backward()
    assert all(p.grad.abs().sum() > 0 for p in made.embedding.extra.parameters())


@each
def test_late_blocks_go_where_the_target_is(card):
    network, (x, noise) = built(card), inputs(card)
    made = extended(network, late=len(network.blocks), target=1)
    assert made.state_dict().keys() == network.state_dict().keys()
    assert torch.equal(made(x, noise, target=noise), network(x, noise))
    assert torch.equal(made(x, noise, target=noise / 2), network(x, noise / 2))
    half = extended(network, late=len(network.blocks) // 2, target=1)(x, noise, target=noise / 2)
    assert not torch.equal(half, network(x, noise / 2)) and not torch.equal(half, network(x, noise))


@each
def test_forward_mode_is_what_differences_tend_to(card):
    network, (x, noise) = built(card).double().requires_grad_(False), inputs(card)
    point, along = (x.double(), noise.double()), (torch.ones_like(x).double(), torch.ones_like(noise).double())
    with sdpa_kernel(SDPBackend.MATH):
        _, slope = torch.func.jvp(lambda x, t: network(x, t, **labels(card)), point, along)
    ahead, behind = (
        network(*(at + h * v for at, v in zip(point, along, strict=True)), **labels(card)) for h in (1e-4, -1e-4)
    )
    torch.testing.assert_close((ahead - behind) / 2e-4, slope, rtol=1e-3, atol=1e-5 * float(slope.abs().max()))
