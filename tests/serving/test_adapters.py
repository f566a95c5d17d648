"""Adapters that requests name: bit for bit the adapted model's steps, and nobody else's."""

from __future__ import annotations

import threading
from pathlib import Path

import pytest
import torch
from serving.http import live, pixels, until

import fewstep as fs
from fewstep.core.denoiser import Denoiser
from fewstep.core.noise import Noise
from fewstep.report.grid import to_pixels
from fewstep.serving.adapters import Adapters, factors
from fewstep.serving.models import Models
from fewstep.serving.served import Limits
from fewstep.serving.service import Service

pytest.importorskip("peft")
from fewstep.training.adapter_files import load_lora, save_lora  # noqa: E402
from fewstep.training.lora import add_lora, lora_parameters  # noqa: E402


def adapter(path: Path, seed: int, model: str = "digits") -> Path:
    """A file of an adapter that changes what the model draws."""
    made = add_lora(fs.load(model), 2)
    for number, parameter in enumerate(lora_parameters(made)):
        torch.nn.init.normal_(parameter, std=0.08, generator=torch.Generator().manual_seed(100 * seed + number))
    return save_lora(made, path)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    path = tmp_path_factory.mktemp("adapters")
    for seed, name in enumerate(("style", "other")):
        adapter(path / f"{name}.safetensors", seed)
    adapter(path / "shapes-style.safetensors", 0, "shapes")
    (path / "broken.safetensors").write_bytes(b"not an adapter")
    return path


class Slow:
    """A reader that waits until it is let."""

    def __init__(self):
        self.go = threading.Event()

    def __call__(self, model: Denoiser, file: Path):
        assert self.go.wait(30)
        return factors(model, file)


def switched(path: Path, k: int, noise: torch.Tensor, plan) -> torch.Tensor:
    """The plan's samples with k evaluations of the base, and the rest with the adapter."""
    base, other = fs.load("digits"), load_lora(fs.load("digits"), path)
    count = 0

    class Switching(fs.Denoiser):
        def __init__(self):
            super().__init__()
            self.take(base.facts)

        def forward(self, x, t, **condition):
            nonlocal count
            count += 1
            return (base if count <= k else other)(x, t, **condition)

    return plan(Switching(), noise, label=3)


def running(folder: Path, by: int, read=factors, **how):
    models = Models({"digits": "digits"}, fs.load, exact=True, max_batch=16)
    return live(Service(models, Limits(samples=16), Adapters(folder, by, read)), **how)


def test_the_adapter_acts_from_the_step_at_which_it_is_there(folder):
    model = fs.load("digits")
    plan, noise = fs.plan(model.process, "dpmpp-2m", steps=5), Noise(4).normal(0, (16, 1, 8, 8))
    slow = Slow()
    with running(folder, 2, slow) as server:
        found = []
        thread = threading.Thread(
            target=lambda: found.extend(server.draw(label=3, seed=4, steps=5, solver="dpmpp-2m", adapter="style"))
        )
        thread.start()
        counters = server.service.models.counters["digits"]
        until(lambda: counters.calls == 2)  # and it waits now
        assert server.draw(label=3, seed=4, steps=5, solver="dpmpp-2m")  # as nobody else does
        assert counters.calls == 7 and not found
        slow.go.set()
        thread.join(30)
        assert (pixels(found[0]) == to_pixels(switched(folder / "style.safetensors", 2, noise, plan))[0]).all()
        # It is remembered: the next request has it from its first evaluation on.
        again = server.draw(label=3, seed=4, steps=5, solver="dpmpp-2m", adapter="style")
        assert (pixels(again[0]) == to_pixels(switched(folder / "style.safetensors", 0, noise, plan))[0]).all()


def test_no_adapter_leaks_into_other_requests(folder):
    model = fs.load("digits")
    plan, noise = fs.plan(model.process, "ddim", steps=6), Noise(4).normal(0, (16, 1, 8, 8))
    expected = {
        None: plan(model, noise, label=3),
        "style": plan(load_lora(model, folder / "style.safetensors"), noise, label=3),
        "other": plan(load_lora(model, folder / "other.safetensors"), noise, label=3),
    }
    weights = {key: value.clone() for key, value in model.state_dict().items()}
    with running(folder, 0) as server:
        answers = {}

        def ask(name: str | None, number: int) -> None:
            body = {"label": 3, "seed": 4, "steps": 6, "solver": "ddim"} | ({"adapter": name} if name else {})
            answers[name, number] = server.draw(**body)[0]

        threads = [threading.Thread(target=ask, args=(name, k)) for k in range(3) for name in expected]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(60)
        served = server.service.models._running["digits"].served.base
        assert all(torch.equal(value, weights[key]) for key, value in served.state_dict().items())
    assert len(answers) == 9
    for (name, _), image in answers.items():
        assert (pixels(image) == to_pixels(expected[name])[0]).all(), name


def test_what_cannot_be_is_named(folder, tmp_path):
    with running(folder, 1) as server:
        for name, said in (
            ("../style", "unknown adapter"),
            ("styel", "did you mean 'style'|style"),
            ("broken", "no fewstep adapter"),
            ("shapes-style", "adapter for another network"),
        ):
            answer = server.post(steps=4, adapter=name)
            assert answer.status_code == 400, answer.text
            assert any(one in answer.json()["error"]["message"] for one in said.split("|"))
        assert server.post(steps=4).status_code == 200
    with pytest.raises(ValueError, match="no folder"):
        Adapters(tmp_path / "nowhere")
    with pytest.raises(ValueError, match="holds no adapter"):
        Adapters(tmp_path)
    with pytest.raises(ValueError, match="evaluation 0 on or later, got -1"):
        Adapters(folder, -1)
    with pytest.raises(ValueError, match="for networks alone"):
        factors(fs.guide(fs.load("digits"), "cfg", scale=2.0), folder / "style.safetensors")


@pytest.mark.slow
def test_adapters_of_pipelines_are_those_that_are_loaded_with_them(tmp_path):
    pytest.importorskip("diffusers")
    from safetensors.torch import save_file

    from claims.pipelines import matching, tiny
    from fewstep.networks.low_rank import adapted

    kind = "StableDiffusionPipeline"
    pipeline = tiny(kind, matching("ddim", kind))
    generator = torch.Generator().manual_seed(1)
    tensors = {}
    for path, layer in pipeline.unet.named_modules():
        if path.endswith(("to_q", "to_v")):
            tensors[f"unet.{path}.lora_A.weight"] = torch.randn(2, layer.in_features, generator=generator)
            tensors[f"unet.{path}.lora_B.weight"] = torch.randn(layer.out_features, 2, generator=generator)
    file = tmp_path / "style.safetensors"
    save_file(tensors, file)
    model = fs.load(pipeline)
    where, found = factors(model, file)
    other = adapted(model, {f"{where}.{layer}": sides for layer, sides in found.items()})
    how = {"steps": 2, "seed": 3, "text": "a fox"}
    base, beside = fs.sample(model, 1, **how), fs.sample(other, 1, **how)
    merged = fs.sample(fs.load(tiny(kind, matching("ddim", kind)), lora={file: 1.0}), 1, **how)
    torch.testing.assert_close(beside, merged)
    assert (beside - base).abs().max() > 1e-3 and torch.equal(fs.sample(model, 1, **how), base)
    save_file(tensors | {"text_encoder.x.lora_A.weight": torch.zeros(1, 1)}, tmp_path / "text.safetensors")
    with pytest.raises(ValueError, match="which requests share"):
        factors(model, tmp_path / "text.safetensors")


def test_what_is_adapted_belongs_to_the_model_that_is_loaded(folder):
    adapters = Adapters(folder)
    models = Models({"digits": "digits"}, fs.load)
    made = []
    for _ in range(2):  # the same name, loaded anew: in the memory of the one that went, there may be another now
        with models.using("digits") as running:
            found = adapters.wanted(running, "style")[0]
            assert adapters.wanted(running, "style")[0] is found and running.adapted == {"style": found}
            inner = found.result().model.model  # known pixels around guidance
            assert inner.network.last_norm.weight is running.served.base.network.last_norm.weight
            made.append(found.result())
        models._running.clear()
        running.engine.close()
    assert made[0] is not made[1]
