"""Attention as parts: found by the build of the network, and kept as it is or as it adds."""

from __future__ import annotations

import pytest
import torch

from fewstep.caching.attention import attention_parts
from fewstep.hub.models import load
from fewstep.networks.surgery import replaced


def test_ours_are_blocks_that_add(dit):
    found = attention_parts(dit)
    assert list(found["self"]) == [f"block.{k}.attn" for k in range(4)] and found["cross"] == {}
    assert all(part.residual and len(part.blocks) == 1 for part in found["self"].values())
    assert all("attn" in name for name in attention_parts(load("digits"))["self"])


@pytest.mark.parametrize("kind, own, cross", [
    ("DiTPipeline", "attn1", None),
    ("PixArtAlphaPipeline", "attn1", "attn2"),
    ("StableDiffusionPipeline", "attn1", "attn2"),
    ("FluxPipeline", "attn", None),
    ("StableDiffusion3Pipeline", "attn", None),
    ("DDPMPipeline", "0 1", None),
])  # fmt: skip
@torch.no_grad()
def test_those_of_diffusers_by_kind(kind, own, cross):
    """All of them stand with what they said: the answer is the same, and none is run."""
    pytest.importorskip("diffusers")
    from claims.pipelines import matching, tiny
    from fewstep.hub.pipeline import PipelineDenoiser

    model = PipelineDenoiser(tiny(kind, matching("ddim", kind)), size=16)
    found = attention_parts(model)
    for parts, name in zip(found.values(), (own, cross), strict=True):
        assert {one.split(".")[-1] for one in parts} == set((name or "").split())
    parts = {name: part for each in found.values() for name, part in each.items()}
    assert any(len(part.keys) == 2 for part in parts.values()) == (kind in ("FluxPipeline", "StableDiffusion3Pipeline"))
    x = torch.randn(2, *model.shape, generator=torch.Generator().manual_seed(1))
    asked = {"text": ["a cat", "the red dog"]} if "text" in model.conditions else {}
    t, condition = torch.tensor(0.4 * model.process.t_max), model.check_condition(asked, 2, x.device)
    store = {}
    keeping = {path: m for part in parts.values() for path, m in part.keeping(model, store).items()}
    whole = replaced(model, keeping)(x, t, **condition).value
    assert torch.equal(whole, model(x, t, **condition).value) and len(store) >= len(parts)
    standing = {path: m for part in parts.values() for path, m in part.standing(model, store).items()}
    hooks, ran = [], []
    for part in parts.values():
        module = model.get_submodule(part.blocks[0].path)
        hooks.append(module.register_forward_hook(lambda *_: ran.append(1)))
    again = replaced(model, standing)(x, t, **condition).value
    for hook in hooks:
        hook.remove()
    assert not ran
    torch.testing.assert_close(again, whole, rtol=1e-5, atol=1e-5)
