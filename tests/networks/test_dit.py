from __future__ import annotations

import pytest
import torch

from fewstep.networks.dit import DiT, positions


def perturbed(network):
    """The network with its zero-initialised layers moved, so that every path carries signal."""
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in network.parameters():
            parameter.add_(0.05 * torch.randn(parameter.shape, generator=generator))
    return network.eval()


def small(**arguments):
    torch.manual_seed(0)
    given = {"channels": 3, "size": (8, 12), "width": 64, "depth": 2, "classes": 5}
    return perturbed(DiT(**(given | arguments)))


def inputs(batch=2):
    generator = torch.Generator().manual_seed(1)
    return (
        torch.randn(batch, 3, 8, 12, generator=generator),
        torch.rand(batch, generator=generator),
        torch.arange(batch) % 5,
    )


@pytest.mark.parametrize("patch", [1, 2, 4])
def test_output_has_the_shape_of_the_input(patch):
    out = small(patch=patch)(*inputs())
    assert out.shape == (2, 3, 8, 12) and out.isfinite().all()


def test_starts_at_zero_with_every_block_the_identity():
    torch.manual_seed(0)
    network = DiT(channels=3, size=(8, 12), width=64, classes=5)
    seen = []
    for block in network.blocks.values():
        block.register_forward_hook(lambda module, args, out: seen.append(torch.equal(args[0], out)))
    assert (network(*inputs()) == 0).all()
    assert all(seen) and len(seen) == 8


def swap_patches(x, patch):
    """Exchanges the first patch with the one at row 1, column 2."""
    x = x.clone()
    here = (..., slice(0, patch), slice(0, patch))
    there = (..., slice(patch, 2 * patch), slice(2 * patch, 3 * patch))
    x[here], x[there] = x[there].clone(), x[here].clone()
    return x


def test_only_the_positions_tell_patches_apart():
    x, noise, label = inputs()
    network = small(patch=4).double()
    x = x.double()
    out = network(x, noise, label)
    assert not torch.allclose(network(swap_patches(x, 4), noise, label), swap_patches(out, 4), atol=1e-4)
    network.place.zero_()
    out = network(x, noise, label)
    assert torch.allclose(network(swap_patches(x, 4), noise, label), swap_patches(out, 4), atol=1e-12)


def test_positions_are_distinct_and_separable():
    place = positions(3, 5, 16)
    assert place.shape == (15, 16)
    assert torch.pdist(place).min() > 0.1
    grid = place.view(3, 5, 16)
    assert torch.equal(grid[0, :, :8], grid[0, :1, :8].expand(5, 8))  # one row, one code in the first half
    assert torch.equal(grid[:, 0, 8:], grid[:1, 0, 8:].expand(3, 8))
    assert torch.equal(grid[0, :3, 8:], grid[:3, 0, :8])  # rows and columns are coded alike


def test_the_names_of_the_blocks():
    network = small()
    names = ["block.0.attn", "block.0.mlp", "block.1.attn", "block.1.mlp"]
    assert list(network.blocks) == names


@pytest.mark.parametrize(
    "arguments, message",
    [
        ({"size": (8, 11)}, "8x11 do not divide into patches of 2x2"),
        ({"width": 30}, "width a multiple of 4"),
        ({"depth": 0}, "must be at least 1"),
        ({"dropout": -0.1}, "dropout must be"),
    ],
)
def test_wrong_sizes_raise(arguments, message):
    with pytest.raises(ValueError, match=message):
        small(**arguments)


def test_another_size_raises():
    x, noise, label = inputs()
    with pytest.raises(ValueError, match=r"x must have shape \(B, 3, 8, 12\), got \(2, 3, 8, 8\)"):
        small()(x[..., :8], noise, label)
