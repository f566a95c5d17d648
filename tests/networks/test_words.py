"""Attention less what it reads of other words: where it is, what it leaves, and what it refuses."""

from __future__ import annotations

import copy

import pytest
import torch

from fewstep.conditions.text import Text
from fewstep.denoisers.experts import Experts
from fewstep.denoisers.network import NetworkDenoiser
from fewstep.networks.surgery import Skip, replaced
from fewstep.networks.unet import UNet
from fewstep.networks.words import check_reads_words, less_tokens, less_words
from fewstep.processes.vp import VP

CAPTION = torch.tensor([[1, 0]])


def unet(**options) -> UNet:
    torch.manual_seed(0)
    network = UNet(**({"size": 4, "width": (8, 8), "attention": (2,), "vocabulary": 2, "captions": 2} | options))
    with torch.no_grad():
        for parameter in network.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))
    return network.eval()


def test_all_networks_of_a_model_and_the_model_stays_as_it_was():
    one = NetworkDenoiser(unet(), VP(), "v", (1, 4, 4), {"text": Text(("a", "b"), 2)})
    both = Experts([one, copy.deepcopy(one)], [0.5])
    x, names = torch.randn(2, 1, 4, 4), set(both.state_dict())
    made, alone = less_words(both, CAPTION, 0.5), less_words(one, CAPTION, 0.5)
    with torch.no_grad():
        for t in (torch.tensor(0.3), torch.tensor(0.7)):
            base = both(x, t, text=CAPTION.expand(2, 2)).value
            assert torch.equal(
                made(x, t, text=CAPTION.expand(2, 2)).value, alone(x, t, text=CAPTION.expand(2, 2)).value
            )
            assert not torch.equal(base, made(x, t, text=CAPTION.expand(2, 2)).value)
            assert torch.equal(base, both(x, t, text=CAPTION.expand(2, 2)).value)
    assert set(both.state_dict()) == names == set(made.state_dict())


def test_a_block_that_is_left_out_stays_out():
    network, x = unet(), torch.randn(2, 1, 4, 4)
    blocks = [name for name in network.blocks if name.rpartition(".")[2].startswith("attn")]
    without = replaced(network, {name: Skip(of=network.get_submodule(name)) for name in blocks})
    check_reads_words(network)
    with torch.no_grad():
        label, text = torch.tensor([0, 1]), CAPTION.expand(2, 2)
        assert torch.equal(less_words(without, CAPTION, 0.5)(x, 0.3 * torch.ones(2), label, text),
                           without(x, 0.3 * torch.ones(2), label, text))  # fmt: skip


def test_what_is_refused():
    with pytest.raises(ValueError, match="reads no words: none of its blocks attends to a caption"):
        check_reads_words(unet(vocabulary=None))
    pytest.importorskip("diffusers")
    from claims.pipelines import matching, tiny

    joint = tiny("StableDiffusion3Pipeline", matching("ddim", "StableDiffusion3Pipeline")).transformer
    with pytest.raises(ValueError, match=r"the words of this network \(JointTransformerBlock\) change with"):
        check_reads_words(joint)
    unet2d = tiny("StableDiffusionPipeline", matching("ddim", "StableDiffusionPipeline")).unet
    text = torch.randn(1, 4, unet2d.config.cross_attention_dim)
    with pytest.raises(ValueError, match="called without the words to keep away from: guide by 'nasa' first"):
        less_tokens(unet2d, 4, 0.5)(torch.randn(1, 4, 8, 8), 10, encoder_hidden_states=text)
