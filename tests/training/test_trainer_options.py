"""The trainer's options: other pictures, flips and crops, parts of a batch, half precision, sample pictures."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from PIL import Image
from training.test_trainer import assert_same_run, log_of, quiet

from fewstep.conditions.time import Time
from fewstep.denoisers.folder import load_model
from fewstep.training.checkpoint import checkpoints, load_checkpoint
from fewstep.training.pictures import check_pictures, write_pictures
from fewstep.training.sources import open_split
from fewstep.training.state import TrainingState
from fewstep.training.trainer import _accelerator


def test_a_finished_run_that_is_resumed_reports_its_last_loss(make_recipe, tmp_path):
    first = quiet(make_recipe(steps=6), tmp_path / "run")
    again = quiet(make_recipe(steps=6), tmp_path / "run", resume=True)
    assert again.step == 6 and again.loss == first.loss and math.isfinite(first.loss)


NETWORK = {"name": "unet", "width": [8], "attention": []}


def pictures(root, count=9, side=6):
    root.mkdir()
    rng = np.random.default_rng(1)
    for i in range(count):
        Image.fromarray(rng.integers(0, 256, (side, side), np.uint8)).save(root / f"{i}.png")
    return {
        "data": {"source": str(root), "mode": "L", "validation": 0.2},
        "network": {"name": "unet", "width": [8], "attention": []},
    }


@pytest.mark.parametrize("change", ["replaced", "renamed"])
def test_other_pictures_are_refused(make_recipe, tmp_path, change):
    sections = pictures(tmp_path / "data")
    recipe = make_recipe(sections, steps=4, batch=3, condition_dropout=0.0)
    quiet(recipe, tmp_path / "run", steps=2)
    quiet(recipe, tmp_path / "run", steps=3, resume=True)
    if change == "replaced":
        (tmp_path / "data" / "2.png").write_bytes((tmp_path / "data" / "3.png").read_bytes())
    else:
        (tmp_path / "data" / "2.png").rename(tmp_path / "data" / "z.png")
    with pytest.raises(ValueError, match="are not those that the checkpoint .* was trained on: some were replaced"):
        quiet(recipe, tmp_path / "run", resume=True)


def test_flips_and_crops_are_resumed_to_the_bit(make_recipe, tmp_path):
    sections = pictures(tmp_path / "data")
    sections["data"] |= {"flip": True, "crop": 4}
    recipe = make_recipe(sections, steps=6, batch=3, condition_dropout=0.0, save_every=3, validate_every=3)
    quiet(recipe, tmp_path / "whole")
    quiet(recipe, tmp_path / "parts", steps=2)
    quiet(recipe, tmp_path / "parts", resume=True)
    assert_same_run(tmp_path / "whole", tmp_path / "parts")
    assert load_model(tmp_path / "whole" / "model").shape == (1, 4, 4)
    with pytest.raises(ValueError, match="data.crop = 7 is larger than the pictures of .*, 6x6"):
        quiet(make_recipe(sections | {"data": sections["data"] | {"crop": 7}}, condition_dropout=0.0), tmp_path / "x")


def gradients(recipe):
    with _accelerator(recipe.train.precision, "cpu") as accelerator, torch.random.fork_rng(devices=[]):
        state = TrainingState(recipe, accelerator)
        found = []
        state.player.optimizer.step = lambda *_: found.extend(p.grad.clone() for p in state.network.parameters())
        state.advance()
        return found, state


@pytest.mark.parametrize("parts", [2, 6])
def test_the_gradients_of_parts_are_those_of_the_whole_batch(make_recipe, parts):
    quiet_network = {"network": {"name": "unet", "width": [8, 12], "attention": [2], "dropout": 0.0}}
    whole, _ = gradients(make_recipe(quiet_network))
    split, state = gradients(make_recipe(quiet_network, accumulate=parts))
    for one, other in zip(whole, split, strict=True):
        torch.testing.assert_close(other, one, rtol=1e-5, atol=1e-7)
    assert float(state.sums[0]) == 1 and math.isfinite(state.means()["loss"])


def test_parts_that_do_not_divide_or_do_not_fit_are_refused(make_recipe, tmp_path):
    with pytest.raises(ValueError, match="train.batch = 6 does not divide among 1 processes in 4 parts each"):
        quiet(make_recipe(accumulate=4), tmp_path / "run")
    with pytest.raises(ValueError, match="train.accumulate must be at least 1"):
        make_recipe(accumulate=0)
    levels = {"noise_levels": {"draw": "log-normal", "mean": -1.0, "std": 1.2, "importance": True}}
    with pytest.raises(ValueError, match="noise_levels.importance takes the gradients itself: leave train.accumulate"):
        quiet(make_recipe(levels, accumulate=2), tmp_path / "run")


def test_half_precision_scales_its_losses_and_resumes(make_recipe, tmp_path):
    recipe = make_recipe(precision="fp16", steps=6, save_every=3, log_every=2)
    quiet(recipe, tmp_path / "whole")
    quiet(recipe, tmp_path / "parts", steps=3)
    assert load_checkpoint(checkpoints(tmp_path / "parts")[-1])[0]["scaler"].tolist()[0] > 1
    quiet(recipe, tmp_path / "parts", resume=True)
    assert_same_run(tmp_path / "whole", tmp_path / "parts")
    assert all(math.isfinite(record["loss"]) for record in log_of(tmp_path / "whole"))
    plain, _ = gradients(make_recipe())
    half, state = gradients(recipe)
    norm = lambda grads: torch.cat([g.flatten() for g in grads])  # noqa: E731
    assert (norm(half) - norm(plain)).norm() < 0.02 * norm(plain).norm()


def test_an_overflow_moves_nothing_and_lowers_the_scale(make_recipe):
    with _accelerator("fp16", "cpu") as accelerator, torch.random.fork_rng(devices=[]):
        state = TrainingState(make_recipe(precision="fp16"), accelerator)
        before, scale = [p.clone() for p in state.network.parameters()], state.scaler.get_scale()
        forward = state._forward
        state._forward = lambda drawn, rows: forward(drawn, rows) * math.inf
        state.advance()
        state.check_finite()
        assert state.scaler.get_scale() == scale / 2
        assert all(torch.equal(a, b) for a, b in zip(before, state.network.parameters(), strict=True))
        with pytest.raises(FloatingPointError, match="overflowed .*at every scale"):
            for _ in range(20):
                state.advance()
            state.check_finite()


def test_a_flow_map_trains_as_the_denoiser_that_it_is_without_a_time_to_go_to(make_recipe):
    recipe = make_recipe({"network": {"name": "unet", "width": [8, 12], "attention": [2], "extras": {"target": 1}}})
    found = []
    for conditions in ({}, {"to": Time()}):
        with _accelerator("fp32", "cpu") as accelerator, torch.random.fork_rng(devices=[]):
            state = TrainingState(recipe, accelerator)
            state.denoiser.conditions = {**state.denoiser.conditions, **conditions}
            state.advance()
            state.check_finite()
            assert state._example()[1].keys() == state.denoiser.conditions.keys() - {"to"}
            found.append([p.clone() for p in state.network.parameters()])
    assert all(torch.equal(a, b) for a, b in zip(*found, strict=True))


def test_sample_pictures_change_no_bit(make_recipe, tmp_path):
    recipe = make_recipe(steps=6, save_every=3)
    quiet(recipe, tmp_path / "whole")
    quiet(recipe, tmp_path / "parts", steps=4, sample_every=2)
    quiet(recipe, tmp_path / "parts", resume=True, sample_every=3)
    assert_same_run(tmp_path / "whole", tmp_path / "parts")
    drawn = sorted((tmp_path / "parts" / "samples").iterdir())
    assert [path.name for path in drawn] == [f"step-0000000{step}.png" for step in (2, 4, 6)]
    with Image.open(drawn[-1]) as image:
        assert image.size == (4 * 64 + 3 * 4,) * 2 and image.text["step"] == "6"
    with pytest.raises(ValueError, match="sample_every must be a whole number of at least 0, got -1"):
        quiet(recipe, tmp_path / "other", sample_every=-1)


def test_the_grid_of_a_state_and_what_is_no_picture(make_recipe, tmp_path):
    with _accelerator("fp32", "cpu") as accelerator, torch.random.fork_rng(devices=[]):
        state = TrainingState(make_recipe(), accelerator)
        before = torch.get_rng_state(), state.draws.state()
        path = write_pictures(state, tmp_path)
        assert path == tmp_path / "samples" / "step-00000000.png" and path.is_file()
        assert torch.equal(torch.get_rng_state(), before[0])
        assert all(torch.equal(value, before[1][name]) for name, value in state.draws.state().items())
        state.denoiser.shape = (2,)
        with pytest.raises(ValueError, match=r"the samples here have shape \(2,\): leave it out"):
            check_pictures(state)


def test_a_split_is_opened_as_the_recipe_says(make_recipe, tmp_path):
    sections = pictures(tmp_path / "data")
    (tmp_path / "data" / "0.txt").write_text("a cat")
    sections["data"]["captions"] = True
    part = make_recipe(sections, condition_dropout=0.0).data
    with pytest.warns(UserWarning, match="8 pictures have no caption"):
        data = open_split(part, "train")
    assert data.spec.text.vocabulary == ("a", "cat") and len(data) == 7 and data.spec.shape == (1, 6, 6)
