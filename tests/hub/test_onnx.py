"""Denoisers as ONNX files: the same samples from ONNX Runtime as from torch."""

from __future__ import annotations

import pytest
import torch

from fewstep.conditions.label import Label
from fewstep.conditions.time import Time
from fewstep.core.student import Student
from fewstep.denoisers.network import NetworkDenoiser
from fewstep.guidance.guide import guide
from fewstep.hub.models import load
from fewstep.hub.onnx import as_configs, example, export_onnx, load_onnx
from fewstep.hub.pipeline import PipelineDenoiser
from fewstep.networks.mlp import MLP
from fewstep.processes.discrete import Discrete
from fewstep.processes.ve import EDM
from fewstep.processes.vp import VP
from fewstep.sampling.build import plan

pytest.importorskip("onnxruntime")
pytest.importorskip("onnxscript")


def agree(model, opened, tolerance=1e-4, solvers=("dpmpp-2m", "ddpm"), **condition):
    noise = torch.randn(3, *model.shape, generator=torch.Generator().manual_seed(1))
    for name in solvers:
        made = plan(model.process, name, 4)
        ours, theirs = made(model, noise, **condition), made(opened, noise, **condition)
        scale = max(1.0, float(ours.abs().max()))
        assert (ours - theirs).abs().max() <= tolerance * scale


@pytest.fixture(scope="module")
def labelled():
    torch.manual_seed(0)
    network = MLP((2, 3), classes=4, width=16, depth=1)
    model = NetworkDenoiser(network, EDM(), "x0", (2, 3), {"label": Label(4)}, precondition="edm", data_std=0.7).eval()
    model.plan = plan(model.process, "unipc-2", 3)
    return model


@pytest.fixture(scope="module")
def written(labelled, tmp_path_factory):
    return export_onnx(labelled, tmp_path_factory.mktemp("onnx") / "model.onnx")


def test_it_opens_alone_and_runs_every_plan(labelled, written):
    opened = load_onnx(written)
    assert opened.process == labelled.process and opened.shape == (2, 3) and opened.value_range == (-1.0, 1.0)
    assert opened.conditions["label"] == Label(4) and opened.plan == labelled.plan
    agree(labelled, opened, solvers=("dpmpp-2m", "ddpm", "unipc-3", "heun"), label=2)
    agree(labelled, opened, label=[0, 3, 1])
    agree(labelled, opened)
    one, there = torch.randn(1, 2, 3), {"t": torch.tensor(3.0), "label": torch.tensor([1])}
    torch.testing.assert_close(opened(one, **there).x0, labelled(one, **there).x0, rtol=1e-4, atol=1e-4)
    with pytest.raises(ValueError, match="label 7 is out of range"):
        plan(opened.process, "ddim", 2)(opened, torch.randn(2, 2, 3), label=7)
    assert [path.name for path in written.parent.iterdir()] == ["model.onnx"]


def test_what_cannot_be_written(labelled, tmp_path):
    with pytest.raises(ValueError, match="there is no folder"):
        export_onnx(labelled, tmp_path / "none" / "model.onnx")
    anything = NetworkDenoiser(torch.nn.Identity(), EDM(), "eps")
    with pytest.raises(ValueError, match=r"set model.shape"):
        export_onnx(anything, tmp_path / "model.onnx")
    half = NetworkDenoiser(torch.nn.Linear(2, 2).half(), EDM(), "eps", (2,))
    with pytest.raises(ValueError, match=r"float32 model, got torch.float16: use model.float"):
        export_onnx(half, tmp_path / "model.onnx")
    assert not list(tmp_path.iterdir())


def test_what_cannot_be_opened(written, tmp_path):
    with pytest.raises(ValueError, match="there is no file"):
        load_onnx(tmp_path / "model.onnx")
    (tmp_path / "cut.onnx").write_bytes(written.read_bytes()[:200])
    with pytest.raises(ValueError, match="is no ONNX model|is not a model that export_onnx wrote"):
        load_onnx(tmp_path / "cut.onnx")
    with pytest.raises(ValueError, match="ONNX Runtime has no 'RocketProvider' here; it has .*CPUExecutionProvider"):
        load_onnx(written, ["RocketProvider"])
    import onnx

    other = onnx.load(written)
    del other.metadata_props[:]
    onnx.save(other, tmp_path / "other.onnx")
    with pytest.raises(ValueError, match="not a model that export_onnx wrote: it says format None"):
        load_onnx(tmp_path / "other.onnx")


@pytest.mark.slow
@pytest.mark.parametrize("name,condition", [("digits", {"label": 3}), ("shapes", {"text": "a large red circle"})])
def test_embedded_models(name, condition, tmp_path):
    model = load(name)
    agree(model, load_onnx(export_onnx(model, tmp_path / "model.onnx")), **condition)


@pytest.mark.slow
def test_a_unet_of_diffusers(tmp_path):
    diffusers = pytest.importorskip("diffusers")

    class Call(torch.nn.Module):
        def __init__(self, unet):
            super().__init__()
            self.unet = unet

        def forward(self, x, t):
            return self.unet(x, t).sample

    torch.manual_seed(0)
    unet = diffusers.UNet2DModel(sample_size=8, block_out_channels=(8, 16), layers_per_block=1, norm_num_groups=4,
        attention_head_dim=8, down_block_types=("DownBlock2D", "AttnDownBlock2D"),
        up_block_types=("AttnUpBlock2D", "UpBlock2D"))  # fmt: skip
    model = NetworkDenoiser(Call(unet), Discrete.linear(), "eps", (3, 8, 8)).eval()
    agree(model, load_onnx(export_onnx(model, tmp_path / "model.onnx")))


def test_a_negative_prompt_stays_inside():
    """Its encoder is not in the file; what is led away from is what the model was guided with."""
    pytest.importorskip("diffusers")
    from claims.pipelines import matching, tiny

    pipeline = PipelineDenoiser(tiny("StableDiffusionPipeline", matching("ddim", "StableDiffusionPipeline")))
    guided = guide(pipeline, "cfg", scale=3.0, negative="grey")
    given = example(guided, 2)
    assert set(given) == {"text", "guidance"}
    assert {name: kind["kind"] for name, kind in as_configs(guided, given).items()} == {
        "text": "picture",
        "guidance": "number",
    }


@pytest.mark.slow
def test_a_flow_map_jumps_in_a_file_too(tmp_path):
    class Aimed(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.layer = torch.nn.Linear(3, 3)

        def forward(self, x, noise, target=None):
            target = noise if target is None else target
            return torch.tanh(self.layer(x)) * (1 + noise)[:, None] + target[:, None]

    student = Student("map", "ctm", start=0.9)
    model = NetworkDenoiser(Aimed(), VP(), "x0", (3,), {"to": Time()}, student=student).eval()
    opened = load_onnx(export_onnx(model, tmp_path / "map.onnx"))
    assert opened.conditions == {"to": Time()} and opened.student == student
    agree(model, opened, solvers=("flow-map", "ddim"))
    noise = torch.randn(3, 3, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    made = plan(VP(), "flow-map", 3, gamma=0.5)  # in a state of float64 the times are float64 as well
    ours, theirs = (made(one, noise, dtype=torch.float64) for one in (model, opened))
    torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-4)
