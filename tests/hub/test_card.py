"""The card of a saved model: front matter, an example that runs, figures."""

from __future__ import annotations

import re

import pytest
import torch

from fewstep.conditions.label import Label
from fewstep.conditions.picture import Picture
from fewstep.core.plan import Plan
from fewstep.denoisers.network import NetworkDenoiser
from fewstep.denoisers.wrap import wrap
from fewstep.hub.card import model_card
from fewstep.hub.models import load, save
from fewstep.networks.mlp import MLP
from fewstep.processes.flow import Flow
from fewstep.sampling.build import plan

RESULT = {
    "plan": "vab-3",
    "about": {"timesteps": "short"},
    "n": 1000,
    "planned_nfe": 4,
    "actual_nfe": 4.0,
    "data": "digits",
    "figures": {
        "frechet": {"value": 0.12345, "n": 1000, "features": "pixels", "floor": 0.31},
        "precision-recall": {"precision": 0.91, "recall": 0.875, "n": 1000},
    },
    "notes": ["No endpoint: | the plan is stochastic"],
}


@pytest.fixture
def model():
    torch.manual_seed(0)
    network = MLP((2, 3), classes=4, width=8, depth=1)
    return NetworkDenoiser(network, Flow(), "velocity", (2, 3), {"label": Label(4)}).eval()


def front(card: str) -> dict:
    yaml = pytest.importorskip("yaml")
    assert card.startswith("---\n")
    return yaml.safe_load(card.split("---\n")[1])


def test_it_is_written_by_default(model, tmp_path):
    made = plan(model.process, "dpmpp-2m", 3)
    folder = save(model, tmp_path / "mine", plan=made, figures=RESULT)
    card = (folder / "README.md").read_text()
    head = front(card)
    assert head["library_name"] == "fewstep" and {"fewstep", "flow"} <= set(head["tags"])
    assert "3 evaluations of the network a sample (dpmpp-2m, times log-snr)" in card
    assert "1000 samples by vab-3 on short times, 4 evaluations each, data digits." in card
    assert "on short times, 1 evaluation each, data" in model_card(model, "mine", made, RESULT | {"actual_nfe": 1.0})
    assert "| frechet | 0.1235 | n 1000, features pixels, floor 0.31 |" in card
    assert "| precision-recall | precision 0.91, recall 0.875 | n 1000 |" in card
    assert f"**parameters**: {sum(p.numel() for p in model.parameters()):,}" in card
    assert load(folder).plan == made
    assert not (save(model, tmp_path / "bare", card="") / "README.md").exists()
    assert (save(model, tmp_path / "own", card="# Own\n") / "README.md").read_text() == "# Own\n"


def test_its_example_runs(model, tmp_path, monkeypatch):
    card = (save(model, tmp_path / "mine") / "README.md").read_text()
    code = re.search(r"```python\n(.*?)```", card, re.S)[1]
    assert "label=0" in code
    monkeypatch.chdir(tmp_path)
    names: dict = {}
    exec(code, names)
    assert tuple(names["samples"].shape) == (4, 2, 3)


def test_a_repository_is_fetched(model):
    assert 'fs.load("me/mine", download=True)' in model_card(model, "me/mine", fetched=True)
    assert "\n# mine\n" in model_card(model, "me/mine")


def test_what_the_example_asks_for():
    network = torch.nn.Identity()
    picture = NetworkDenoiser(network, Flow(), "velocity", (2,), {"y": Picture((2,))})
    assert "fs.sample(model, 4, y=y, seed=0)" in model_card(picture, "m")
    assert front(model_card(picture, "m"))["pipeline_tag"] == "image-to-image"
    shapes = load("shapes")
    words = re.search(r'text="([^"]*)"', model_card(shapes, "shapes"))[1]
    assert shapes.conditions["text"].tokens(words)[0] > 0
    assert front(model_card(shapes, "shapes"))["pipeline_tag"] == "text-to-image"


def test_bad_figures_and_plans(model, tmp_path):
    with pytest.raises(ValueError, match="what fs.evaluate returns"):
        save(model, tmp_path / "a", figures={"frechet": 1.0})
    with pytest.raises(ValueError, match="either a card or figures"):
        save(model, tmp_path / "a", card="x", figures=RESULT)
    with pytest.raises(ValueError, match="made for another process"):
        save(model, tmp_path / "a", plan=plan(Flow(t_max=0.9), "ddim", 2))
    assert not list(tmp_path.iterdir())


def test_a_pipeline_with_its_plan(tiny, tmp_path):
    diffusers = pytest.importorskip("diffusers")
    _, folder = tiny("DDPMPipeline", diffusers.DDPMScheduler(clip_sample=False))
    pipeline = load(folder)
    made = plan(pipeline.process, "unipc-2", 3)
    written = save(pipeline, tmp_path / "pipe", plan=made)
    again = load(written)
    assert again.plan == made and Plan.load(written / "plan.json") == made
    assert not [path for path in written.rglob("*") if path.suffix in (".bin", ".pt")]
    assert "diffusers" in front((written / "README.md").read_text())["tags"]
    noise = torch.randn(2, *pipeline.shape)
    assert torch.equal(made(pipeline, noise), made(again, noise))
    with pytest.raises(ValueError, match="is not empty"):
        save(pipeline, tmp_path / "pipe")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["pipe"]


def test_a_pipeline_that_fails_half_way_leaves_nothing(tiny, tmp_path, monkeypatch):
    diffusers = pytest.importorskip("diffusers")
    pipeline = load(tiny("DDPMPipeline", diffusers.DDPMScheduler())[1])

    def fails(self, path):
        raise OSError("disk full")

    monkeypatch.setattr(Plan, "save", fails)
    with pytest.raises(OSError, match="disk full"):
        save(pipeline, tmp_path / "pipe", plan=plan(pipeline.process, "ddim", 2))
    assert not list(tmp_path.iterdir())


def test_only_what_can_be_saved(tmp_path):
    with pytest.raises(ValueError, match="Wrapped cannot be saved: it is not made of fewstep's own"):
        save(wrap(lambda x, t: x, Flow()), tmp_path / "a")
