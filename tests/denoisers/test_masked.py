"""masked: the base bit for bit without masks, the network with identities in its place with them."""

from __future__ import annotations

import threading

import pytest
import torch
from torch import nn

from fewstep.conditions.label import Label
from fewstep.core.methods import find
from fewstep.denoisers.masked import MaskedDenoiser, flops, skippable
from fewstep.denoisers.network import NetworkDenoiser
from fewstep.networks.dit import DiT
from fewstep.networks.unet import UNet
from fewstep.processes.vp import VP
from fewstep.sampling.build import plan


def model(kind: str = "unet") -> NetworkDenoiser:
    torch.manual_seed(0)
    if kind == "unet":
        network: nn.Module = UNet(channels=3, size=(8, 12), width=(16, 24), classes=5)
    else:
        network = DiT(channels=3, size=(8, 12), width=32, depth=2, classes=5)
    with torch.no_grad():
        for parameter in network.parameters():
            parameter.add_(0.05 * torch.randn_like(parameter))
    return NetworkDenoiser(network.eval(), VP(), "eps", (3, 8, 12), {"label": Label(5)})


def inputs(n: int = 4) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
    x = torch.randn(n, 3, 8, 12, generator=torch.Generator().manual_seed(1))
    return x, {"label": torch.arange(n) % 5}


def replaced(base: NetworkDenoiser, names: list[str], x, t, **condition) -> torch.Tensor:
    """By forward hooks that give each block's input back."""
    handles = [
        base.network.get_submodule(name).register_forward_hook(lambda module, inputs, output: inputs[0])
        for name in names
    ]
    value = base(x, t, **condition).value
    for handle in handles:
        handle.remove()
    return value


def test_masked_is_registered():
    assert find("masked") is MaskedDenoiser


@pytest.mark.parametrize("kind", ["unet", "dit"])
def test_left_out_blocks_are_identities_at_their_times_alone(kind):
    base = model(kind)
    x, condition = inputs()
    names = list(skippable(base))[1:3]
    masked = MaskedDenoiser(base, {0.5: names, 0.25: list(skippable(base))})
    t = torch.tensor(0.5)
    with torch.no_grad():
        assert torch.equal(masked(x, t, **condition).value, replaced(base, names, x, t, **condition))
        assert not torch.equal(masked(x, t, **condition).value, base(x, t, **condition).value)
        other = torch.tensor(0.7)
        assert torch.equal(masked(x, other, **condition).value, base(x, other, **condition).value)


def test_without_masks_it_is_the_base_bit_for_bit():
    base = model()
    x, condition = inputs()
    for masks in ({}, {0.5: []}):
        masked = MaskedDenoiser(base, masks)
        made = plan(base.process, "dpmpp-2m", 4)
        assert torch.equal(made(masked, x, **condition), made(base, x, **condition))


def test_float32_times_of_a_plan_find_their_masks():
    base = model()
    x, condition = inputs()
    made = plan(base.process, "ddim", 6, "karras")
    masked = MaskedDenoiser(base, {t: ["mid.res0"] for t in made.times[:-1]})
    handle = base.network.get_submodule("mid.res0").register_forward_hook(lambda *_: pytest.fail("it has run"))
    made(masked, x, **condition)
    handle.remove()


def test_samples_at_different_times_have_masks_of_their_own():
    base = model()
    x, condition = inputs(5)
    masked = MaskedDenoiser(base, {0.5: ["mid.res0"], 0.2: ["down.0.res0", "mid.attn"]})
    t = torch.tensor([0.5, 0.2, 0.9, 0.2, 0.5])
    together = masked(x, t, **condition)
    for i in range(5):
        alone = masked(x[i : i + 1], t[i], label=condition["label"][i : i + 1])
        torch.testing.assert_close(together.x0[i : i + 1], alone.x0, rtol=1e-5, atol=1e-5)


def test_threads_share_a_network_under_different_masks():
    base = model()
    x, condition = inputs()
    t = torch.tensor(0.5)
    maskings = [{}, {0.5: ["mid.res0"]}, {0.5: ["mid.res1", "down.0.res0"]}]
    models = [MaskedDenoiser(base, masks) for masks in maskings]
    with torch.no_grad():
        expected = [one(x, t, **condition).value for one in models]
    wrong: list[int] = []

    def work(k: int) -> None:
        with torch.no_grad():
            wrong.extend(k for _ in range(10) if not torch.equal(models[k](x, t, **condition).value, expected[k]))

    threads = [threading.Thread(target=work, args=(k,)) for k in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not wrong


def test_skippable_blocks_keep_the_shape_and_add_to_their_input():
    base = model()
    assert list(base.network.skippable) == [
        "down.0.res0",
        "down.1.attn0",
        "mid.res0",
        "mid.attn",
        "mid.res1",
        "up.1.attn0",
    ]
    transformer = model("dit").network
    assert transformer.skippable == transformer.blocks
    x, condition = inputs()
    shapes: dict[str, bool] = {}
    handles = [
        block.register_forward_hook(
            lambda module, inputs, output, name=name: shapes.update({name: inputs[0].shape == output.shape})
        )
        for name, block in base.network.skippable.items()
    ]
    base(x, torch.tensor(0.5), **condition)
    for handle in handles:
        handle.remove()
    assert shapes and all(shapes.values()) and set(shapes) == set(base.network.skippable)


def test_operations_are_counted_and_add_up():
    """A 1x1 world by hand: a linear layer of n to m takes 2 n m operations a row."""

    class Block(nn.Module):
        def __init__(self):
            super().__init__()
            self.layer = nn.Linear(6, 6)

        def forward(self, x):
            return x + self.layer(x)

    class Net(nn.Module):
        def __init__(self):
            super().__init__()
            self.a, self.b = Block(), Block()

        @property
        def skippable(self):
            return {"a": self.a, "b": self.b}

        def forward(self, x, noise):
            return self.b(self.a(x))

    small = NetworkDenoiser(Net(), VP(), "eps", (6,))
    assert flops(small) == 2 * 2 * 36 and flops(small, ["b"]) == 2 * 36 and flops(small, ["a", "b"]) == 0
    base = model("dit")
    whole = flops(base)
    saved = [whole - flops(base, [name]) for name in skippable(base)]
    assert min(saved) > 0 and flops(base, list(skippable(base))) == whole - sum(saved)
    # An attention over N tokens of width W: modulation 2 W 3W, qkv 2 N W 3W, out 2 N W W, and 2 * 2 N N W between them.
    n, w = 4 * 6, 32
    assert saved[0] == 2 * w * 3 * w + 2 * n * w * 3 * w + 2 * n * w * w + 4 * n * n * w


def test_what_cannot_be_masked(make_mixture):
    with pytest.raises(ValueError, match="skippable"):
        MaskedDenoiser(make_mixture(VP()), {0.5: ["mid"]})
    with pytest.raises(ValueError, match=r"did you mean .*'mid.res0'"):
        MaskedDenoiser(model(), {0.5: ["mid.res"]})
    with pytest.raises(ValueError, match="needs a shape"):
        flops(NetworkDenoiser(nn.Identity(), VP()))
