"""Adapters from files in the formats of diffusers, PEFT and kohya, against the same merged by hand."""

from __future__ import annotations

import copy

import pytest
import torch
from safetensors.torch import save_file

import fewstep as fs

pytest.importorskip("diffusers")
peft = pytest.importorskip("peft")
from claims.pipelines import matching  # noqa: E402
from claims.pipelines import tiny as make  # noqa: E402

NETWORKS = {
    "StableDiffusionPipeline": "unet",
    "StableDiffusionXLPipeline": "unet",
    "StableDiffusion3Pipeline": "transformer",
    "FluxPipeline": "transformer",
    "PixArtSigmaPipeline": "transformer",
    "DDPMPipeline": "unet",
}
RANK, ALPHA = 2, 3.0


def opened(kind):
    return make(kind, matching("ddim", kind, **({"use_dynamic_shifting": True} if kind == "FluxPipeline" else {})))


def sides(network, ends=("to_q", "to_v"), seed=1):
    """Random sides of adapters, by the paths of the layers."""
    generator = torch.Generator().manual_seed(seed)
    return {
        path: (
            torch.randn(RANK, layer.in_features, generator=generator),
            torch.randn(layer.out_features, RANK, generator=generator),
        )
        for path, layer in network.named_modules()
        if path.endswith(ends)
    }


def merged(network, adapters, scale):
    """What the network's weights are with the adapters at a scale added."""
    state = copy.deepcopy(network.state_dict())
    for path, (down, up) in adapters.items():
        state[f"{path}.weight"] += scale * up @ down
    return state


def plainly(model, component):
    """The weights that the model is saved with."""
    from fewstep.hub.saving import plain

    return plain(getattr(model.pipeline, component)).state_dict()


def same(state, expected):
    assert list(state) == list(expected)
    for key, value in expected.items():
        torch.testing.assert_close(state[key], value, rtol=1e-5, atol=1e-5)


def in_peft(folder, adapters):
    """As PEFT saves it: a folder with its description."""
    folder.mkdir()
    targets = [path for path in adapters]
    peft.LoraConfig(r=RANK, lora_alpha=ALPHA, target_modules=targets).save_pretrained(folder)
    tensors = {}
    for path, (down, up) in adapters.items():
        tensors |= {f"base_model.model.{path}.lora_A.weight": down, f"base_model.model.{path}.lora_B.weight": up}
    save_file(tensors, folder / "adapter_model.safetensors")
    return folder


@pytest.mark.parametrize(
    "kind", [pytest.param(kind, marks=pytest.mark.slow if i % 3 else []) for i, kind in enumerate(NETWORKS)]
)
def test_of_peft(kind, tmp_path):
    pipeline = opened(kind)
    network = getattr(pipeline, NETWORKS[kind])
    adapters = sides(network)
    assert adapters
    expected = merged(network, adapters, 0.5 * ALPHA / RANK)
    model = fs.load(pipeline, lora={in_peft(tmp_path / "style", adapters): 0.5})
    same(plainly(model, NETWORKS[kind]), expected)
    again = fs.load(fs.save(model, tmp_path / "saved"))
    same(getattr(again.pipeline, NETWORKS[kind]).state_dict(), expected)


@pytest.mark.parametrize("kind", ["StableDiffusionPipeline", "StableDiffusion3Pipeline", "FluxPipeline"])
def test_of_diffusers(kind, tmp_path):
    """In its present names, without an alpha; in one file with an adapter of a text encoder where that has one."""
    pipeline, component = opened(kind), NETWORKS[kind]
    adapters = sides(getattr(pipeline, component))
    words = sides(pipeline.text_encoder, ("q_proj",)) if kind == "StableDiffusionPipeline" else {}
    tensors = {}
    for prefix, each in ((component, adapters), ("text_encoder", words)):
        for path, (down, up) in each.items():
            tensors |= {f"{prefix}.{path}.lora_A.weight": down, f"{prefix}.{path}.lora_B.weight": up}
    file = tmp_path / "pytorch_lora_weights.safetensors"
    save_file(tensors, file, {"format": "pt"})
    expected = merged(getattr(pipeline, component), adapters, 0.8)
    encoder = merged(pipeline.text_encoder, words, 0.8)
    for given in (file, str(tmp_path)):
        model = fs.load(opened(kind), lora={given: 0.8})
        same(plainly(model, component), expected)
        same(plainly(model, "text_encoder"), encoder)


def test_as_diffusers_saves_it(tmp_path):
    """With the alpha among the file's metadata; and as diffusers itself loads it."""
    from peft import get_peft_model_state_dict

    kind = "StableDiffusionPipeline"
    pipeline = opened(kind)
    config = peft.LoraConfig(r=RANK, lora_alpha=5, target_modules=["to_q", "to_v"], init_lora_weights=False)
    pipeline.unet.add_adapter(config)
    tensors = get_peft_model_state_dict(pipeline.unet)
    metadata = {"unet_lora_adapter_metadata": config.to_dict()}
    type(pipeline).save_lora_weights(tmp_path, unet_lora_layers=tensors, **metadata)
    model = fs.load(opened(kind), lora={tmp_path: 1.0})
    same(plainly(model, "unet"), plainly(fs.load(pipeline), "unet"))


@pytest.mark.parametrize("kind", ["StableDiffusionPipeline", "StableDiffusionXLPipeline"])
def test_of_kohya(kind, tmp_path):
    pipeline = opened(kind)
    tensors: dict[str, torch.Tensor] = {}
    adapters, words = sides(pipeline.unet, ("to_q", "to_out.0")), sides(pipeline.text_encoder, ("q_proj", "fc1"), 2)
    te = "lora_te1" if "XL" in kind else "lora_te"
    for prefix, each in (("lora_unet", adapters), (f"{te}_text_model", words)):
        for path, (down, up) in each.items():
            name = f"{prefix}_{path.removeprefix('text_model.').replace('.', '_')}"
            tensors |= {f"{name}.lora_down.weight": down, f"{name}.lora_up.weight": up}
            tensors[f"{name}.alpha"] = torch.tensor(ALPHA)
    save_file(tensors, tmp_path / "style.safetensors")
    expected = merged(pipeline.unet, adapters, -0.5 * ALPHA / RANK)
    encoder = merged(pipeline.text_encoder, words, -0.5 * ALPHA / RANK)
    model = fs.load(pipeline, lora={tmp_path / "style.safetensors": -0.5})
    same(plainly(model, "unet"), expected)
    same(plainly(model, "text_encoder"), encoder)


def test_several_add_up(tmp_path):
    pipeline = opened("StableDiffusionPipeline")
    first, second = sides(pipeline.unet), sides(pipeline.unet, ("to_q", "to_k"), 5)
    expected = merged(pipeline.unet, first, 0.5 * ALPHA / RANK)
    for path, (down, up) in second.items():
        expected[f"{path}.weight"] += 2.0 * ALPHA / RANK * up @ down
    lora = {in_peft(tmp_path / "one", first): 0.5, str(in_peft(tmp_path / "two", second)): 2}
    model = fs.load(pipeline, lora=lora)
    same(plainly(model, "unet"), expected)
    drawn = fs.sample(model, 1, text="a cat", steps=3, solver="ddim")
    again = fs.load(fs.save(model, tmp_path / "saved"))
    torch.testing.assert_close(fs.sample(again, 1, text="a cat", steps=3, solver="ddim"), drawn, rtol=0, atol=1e-4)


def test_what_is_no_adapter_for_it(tmp_path):
    kind = "StableDiffusionPipeline"
    pipeline = opened(kind)
    before = list(pipeline.unet.state_dict())
    good = in_peft(tmp_path / "good", sides(pipeline.unet))
    other = in_peft(tmp_path / "other", sides(opened("StableDiffusion3Pipeline").transformer))
    wide = in_peft(
        tmp_path / "wide", {path: (torch.zeros(2, 99), up) for path, (_, up) in sides(pipeline.unet).items()}
    )
    thin = in_peft(
        tmp_path / "thin", {path: (down[:1], up[:, :1].clone()) for path, (down, up) in sides(pipeline.unet).items()}
    )
    (tmp_path / "none").mkdir()
    save_file({"conv.weight": torch.zeros(2)}, tmp_path / "network.safetensors")
    further = {f"text_encoder_2.q_proj.lora_{side}.weight": torch.zeros(2, 2) for side in "AB"}
    save_file(further, tmp_path / "three.safetensors")
    (tmp_path / "old.pt").write_bytes(b"PK\3\4")
    for lora, message in (
        ({good: 1.0, other: 1.0}, "is an adapter for another network: the unet has no layer transformer_blocks.0"),
        ({good: 1.0, wide: 1.0}, r"does not fit the unet: .*to_q is \(16, 16\), the adapter's sides are \(2, 99\) and"),
        ({good: 1.0, thin: 1.0}, r"adapter_model.safetensors says that it is of rank 2, and .*to_[qv] is of 1"),
        ({tmp_path / "none": 1.0}, "none should hold one adapter in safetensors, and has none"),
        ({tmp_path / "nowhere": 1.0}, "there is no file .*nowhere"),
        ({tmp_path / "network.safetensors": 1.0}, "network.safetensors .*adapter"),
        ({tmp_path / "three.safetensors": 1.0}, "for another pipeline: this one has no text_encoder_2"),
        ({tmp_path / "old.pt": 1.0}, "old.pt is a pickle"),
        ({good: float("nan")}, "the weight of an adapter must be a finite number, got nan"),
    ):
        with pytest.raises(ValueError, match=message) as caught:
            fs.load(pipeline, lora=lora)
        assert "\n" not in str(caught.value) and list(pipeline.unet.state_dict()) == before
    with pytest.raises(ValueError, match="the folder .* holds no adapter"):
        fs.load("digits", lora={good: 1.0})
