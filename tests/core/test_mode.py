"""Evaluation mode for a while."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from fewstep.conditions.label import Label
from fewstep.core.mode import evaluating
from fewstep.denoisers.checks import check_denoiser
from fewstep.denoisers.network import NetworkDenoiser
from fewstep.guidance.guide import guide
from fewstep.hub.onnx import export_onnx, load_onnx
from fewstep.hub.program import export_program, load_program
from fewstep.networks.mlp import MLP
from fewstep.networks.surgery import InPlaceOf
from fewstep.processes.flow import Flow
from fewstep.sampling.build import plan


def modes(module):
    return [part.training for part in module.modules()]


def test_each_module_has_its_own_flag_again():
    inside = nn.Sequential(nn.Dropout(), nn.Linear(2, 2), nn.Dropout())
    inside[0].eval()
    unseen = InPlaceOf(nn.Dropout())  # knows a module that is none of its parts
    whole = nn.ModuleList([inside, unseen])
    before = modes(whole), unseen.of.training
    with evaluating(whole):
        assert not any(modes(whole)) and not unseen.of.training
        x = torch.randn(3, 2)
        assert torch.equal(inside(x), inside[1](x))
    assert (modes(whole), unseen.of.training) == before == ([True, True, False, True, True, True], True)
    with pytest.raises(KeyError), evaluating(inside, unseen):
        raise KeyError
    assert (modes(whole), unseen.of.training) == before


@pytest.fixture(params=["mixed", pytest.param("loaded", marks=pytest.mark.slow)])
def guided(request):
    """A guided model whose wrapper is in training mode, as every new module is, and whose network is not."""
    torch.manual_seed(0)
    network = nn.ModuleDict({"dropout": nn.Dropout(0.5)})
    inner = MLP((2, 3), classes=4, width=8, depth=1)

    class Dropping(nn.Module):
        def __init__(self):
            super().__init__()
            self.inner, self.parts = inner, network

        def forward(self, x, t, label):
            return self.parts["dropout"](self.inner(x, t, label=label)) + 0.1 * x

    model = NetworkDenoiser(Dropping(), Flow(), "velocity", (2, 3), {"label": Label(4)}).eval()
    with torch.no_grad():
        for parameter in model.parameters():  # the last layer begins at zero
            parameter.add_(0.1 * torch.randn_like(parameter))
    if request.param == "mixed":
        network.train()
    return guide(model, "cfg", scale=2.0)


def test_checks_leave_every_mode_as_it_was(guided):
    before = modes(guided)
    check_denoiser(guided, torch.randn(32, 2, 3))
    assert modes(guided) == before and before[0]
    with pytest.raises(ValueError):
        check_denoiser(guided, torch.randn(32, 9))
    assert modes(guided) == before


@pytest.mark.parametrize("export", ["export_program", "export_onnx"])
def test_exports_leave_every_mode_as_it_was(export, guided, tmp_path, monkeypatch):
    """When they fail as well; what is traced is in evaluation mode."""
    pytest.importorskip("onnxscript")
    before, seen = modes(guided), []

    def refuse(whole, *arguments, **options):
        seen.extend(modes(whole))
        raise torch.onnx.errors.OnnxExporterError("no such operation")

    monkeypatch.setattr(torch.onnx, "export", refuse)
    monkeypatch.setattr(torch.export, "export", refuse)
    with pytest.raises(ValueError, match="a Guided.*no such operation"):
        if export == "export_onnx":
            export_onnx(guided, tmp_path / "guided.onnx")
        else:
            export_program(plan(Flow(), "ddim", 2), guided, tmp_path / "guided.pt2")
    assert modes(guided) == before and seen and not any(seen)


@pytest.mark.slow
def test_a_guided_model_goes_into_one_program_of_any_batch(guided, tmp_path):
    before, made = modes(guided), plan(Flow(), "ddim", 2)
    program = load_program(export_program(made, guided, tmp_path / "guided.pt2"))
    assert modes(guided) == before
    guided.eval()
    for count in (1, 5):
        noise = torch.randn(count, 2, 3)
        for asked in ({"label": 3}, {"label": 3, "guidance": 4.0}, {"label": 3, "negative_label": 1}):
            torch.testing.assert_close(program(noise, **asked), made(guided, noise, **asked), rtol=1e-5, atol=1e-5)


@pytest.mark.slow
def test_a_guided_model_in_onnx(guided, tmp_path):
    pytest.importorskip("onnxruntime")
    opened = load_onnx(export_onnx(guided, tmp_path / "guided.onnx"))
    guided.eval()
    noise = torch.randn(3, 2, 3)
    for asked in ({"label": 2}, {"label": 2, "guidance": 4.0}, {"label": 2, "negative_label": 1}):
        found, expected = (plan(Flow(), "ddim", 2)(model, noise, **asked) for model in (opened, guided))
        torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-4)
