"""The blocks of every family of pipelines: replaced by themselves, left out, found from the model."""

from __future__ import annotations

import pytest
import torch
from torch import nn

import fewstep as fs
from fewstep.denoisers.masked import MaskedDenoiser, flops, skippable
from fewstep.hub.pipeline import PipelineDenoiser, families
from fewstep.networks.blocks import blocks_of, stage_blocks
from fewstep.networks.surgery import InPlaceOf, Keep, Stored, replaced, without

pytest.importorskip("diffusers")
from claims.pipelines import matching, tiny  # noqa: E402

KINDS = sorted({card.name: kind for kind, card in sorted(families().items())}.values())  # one of each family


@pytest.fixture(
    scope="module",
    params=[pytest.param(kind, marks=pytest.mark.slow if i % 2 else []) for i, kind in enumerate(KINDS)],
)
def model(request) -> PipelineDenoiser:
    made = PipelineDenoiser(tiny(request.param, matching("ddim", request.param)))
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():  # gates and last layers start at zero
        for parameter in made.network.parameters():
            parameter.add_(0.05 * torch.randn(parameter.shape, generator=generator))
    return made


def call(model: nn.Module, like: PipelineDenoiser) -> torch.Tensor:
    """The answer to two latents at one time."""
    x = torch.randn(2, *like.shape, generator=torch.Generator().manual_seed(1))
    asked = {"text": ["a cat", "the red dog"]} if "text" in like.conditions else {}
    if "label" in like.conditions:
        asked["label"] = [3, 1]
    for name, kind in like.conditions.items():
        if isinstance(kind, fs.Picture):  # of networks that read one: a half of it drawn anew
            asked[name] = (torch.linspace(-1, 1, kind.shape[-1]) > 0).float().expand(kind.shape)
    condition = like.check_condition(asked, 2, x.device)
    with torch.no_grad():
        return model(x, torch.tensor(0.4 * like.process.t_max), **condition).value


class Ran(InPlaceOf):
    """Runs a block and says that it did, and what went in and out."""

    def __init__(self, inner, block, seen):
        super().__init__(inner)
        self.inner, self.block, self.seen = inner, block, seen

    def forward(self, *args, **named):
        answer = self.inner(*args, **named)
        self.seen.append((self.block, self.block.taken(args, named), self.block.value(answer)))
        assert isinstance(answer, tuple) == (self.block.output is not None)
        return answer


def test_the_family_names_what_the_model_names(model):
    own, found = model.family.blocks(model.network), blocks_of(model)
    assert own and list(own) == list(found)
    for path, block in own.items():
        assert path == block.path and found[path].path == f"network.{path}"
        assert model.get_submodule(found[path].path) is model.network.get_submodule(path)
    wrapped = fs.guide(model, "cfg", scale=2.0) if model.conditions else MaskedDenoiser(model, {})
    assert {wrapped.get_submodule(block.path) for block in blocks_of(wrapped).values()} == {
        model.get_submodule(block.path) for block in found.values()
    }


def test_each_runs_once_in_order_from_tensor_to_tensor(model):
    blocks, seen = blocks_of(model), []
    parts = {b.path: Ran(model.get_submodule(b.path), b, seen) for b in blocks.values()}
    assert torch.equal(call(replaced(model, parts), model), call(model, model))
    assert [block for block, _, _ in seen] == list(blocks.values())
    for block, before, after in seen:
        assert isinstance(before, torch.Tensor) and isinstance(after, torch.Tensor)
        assert not block.skippable or before.shape == after.shape
    sizes: dict[int, set] = {}
    for block, before, _ in seen:
        sizes.setdefault(block.level, set()).add(before.shape[-1])
    assert sizes == {0: {8}, 1: {4}} if model.family.component == "unet" else list(sizes) == [0]


def test_each_replaced_by_itself_changes_no_bit(model):
    expected = call(model, model)
    for block in blocks_of(model).values():
        same = replaced(model, {block.path: model.get_submodule(block.path)})
        assert torch.equal(call(same, model), expected), block


def test_leaving_one_out_keeps_the_shape_and_the_original(model):
    expected, before = call(model, model), dict(model.named_modules())
    blocks = [block for block in blocks_of(model).values() if block.skippable]
    assert blocks
    for block in blocks:
        out = call(without(model, [block]), model)
        assert out.shape == expected.shape and not torch.equal(out, expected), block
    every = call(without(model, blocks), model)
    assert every.shape == expected.shape and bool(torch.isfinite(every).all())
    assert dict(model.named_modules()) == before and torch.equal(call(model, model), expected)


def test_a_kept_answer_stands_for_a_block(model):
    store: dict[str, object] = {}
    paths = [block.path for block in blocks_of(model).values()]
    kept = replaced(model, {path: Keep(model.get_submodule(path), store, path) for path in paths})
    expected = call(kept, model)
    assert list(store) == paths
    stored = replaced(model, {path: Stored(store, path, model.get_submodule(path)) for path in paths})
    assert torch.equal(call(stored, model), expected)


def test_masks_and_operations_see_the_blocks(model):
    names = list(skippable(model))
    time = 0.4 * model.process.t_max
    masked = MaskedDenoiser(model, {time: names[:1]})
    assert torch.equal(call(masked, model), call(without(model, [blocks_of(model)[names[0]]]), model))
    assert 0 < flops(model, names) < flops(model, names[:1]) < flops(model)


def test_weights_that_are_moved_when_used(tmp_path):
    """accelerate writes a forward onto the object; the copy's runs the copy."""
    pytest.importorskip("accelerate")
    tiny("StableDiffusionPipeline", matching("ddim", "StableDiffusionPipeline")).save_pretrained(tmp_path)
    plain, moved = fs.load(tmp_path), fs.load(tmp_path, offload=True)
    assert "forward" in moved.network.__dict__
    blocks = [block for block in blocks_of(plain).values() if block.skippable]
    assert torch.equal(call(without(moved, blocks), plain), call(without(plain, blocks), plain))
    assert not torch.equal(call(without(moved, blocks), plain), call(moved, plain))


def test_stages_with_a_picture_beside_them():
    """Score-based UNets: what acts on the picture is no block, and attention comes last going up."""
    from diffusers import UNet2DModel

    torch.manual_seed(0)
    network = UNet2DModel(
        sample_size=8,
        block_out_channels=(32, 32),
        down_block_types=("SkipDownBlock2D", "AttnSkipDownBlock2D"),
        up_block_types=("AttnSkipUpBlock2D", "SkipUpBlock2D"),
        layers_per_block=1,
        attention_head_dim=16,
    ).eval()
    blocks, seen = stage_blocks(network), []
    same = replaced(network, {path: Ran(network.get_submodule(path), block, seen) for path, block in blocks.items()})
    x = torch.randn(2, 3, 8, 8, generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        assert torch.equal(same(x, 3).sample, network(x, 3).sample)
    assert [block.path for block, _, _ in seen] == list(blocks)
    assert {"down_blocks.0.resnet_down", "up_blocks.0.resnet_up", "up_blocks.0.attentions.0"} < set(blocks)
