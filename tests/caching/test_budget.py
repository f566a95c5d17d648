"""A schedule for one plan: what it runs, which plans it takes, and how it is printed."""

from __future__ import annotations

import pytest
import torch

import fewstep as fs
from fewstep.caching.budget import budget, parts_of
from fewstep.caching.recipe import Bound
from fewstep.core.noise import Noise


@pytest.fixture(scope="module")
def digits():
    return fs.load("digits")


def noise(n: int = 2):
    return Noise(0).normal(0, (n, 1, 8, 8))


def scheduled(model, plan, rows, orders=None, **options):
    return budget(model, rows, list(plan.moments), orders or [1] * len(rows), plan.name, **options)


def test_what_may_stand():
    assert list(parts_of(fs.load("digits"))) == ["output", "below level 0"]
    assert list(parts_of(fs.load("shapes"))) == ["output", "below level 0", "below level 1"]
    assert list(parts_of(fs.load("digits-dit"))) == ["output", "blocks 1 to 8", "blocks 4 to 8"]
    assert list(parts_of(fs.wrap(lambda x, t: x, fs.load("digits").process, "eps", (2,)))) == ["output"]


def test_each_row_runs_as_it_says(digits):
    plan = fs.plan(digits.process, "ddim", 10)
    rows = ["whole", "output", "whole", "below level 0", "output"] * 2
    result = plan.run(scheduled(digits, plan, rows), noise(), label=3)
    assert (result.report["whole"], result.report["part"], result.report["forecast"]) == (4, 2, 4)
    assert result.report["rows"] == 6
    # An order waits until so many answers are kept: of the four forecasts the first has one to go by.
    waits = plan.run(scheduled(digits, plan, rows, [2] * 10), noise(), label=3)
    assert waits.report["forecast"] == 3 and waits.report["whole"] == 5


def test_a_start_in_the_middle_keeps_the_rest_of_the_schedule(digits):
    plan = fs.plan(digits.process, "ddim", 10)
    rows = ["whole", "output"] * 5
    later = fs.plan(digits.process, "ddim", timesteps=plan.times[4:])
    found = later.run(scheduled(digits, plan, rows, [2] * 10), noise(), init=noise(), label=3)
    assert found.report["forecast"] == 2 and found.report["whole"] == 4  # the first forecast has too few answers yet


def test_other_plans_are_refused(digits):
    plan = fs.plan(digits.process, "ddim", 10)
    model = scheduled(digits, plan, ["whole", "output"] * 5)
    asked = r"calibrated for ddim, 10 evaluations, and the run is {}: calibrate again, or name a cache with an interval"
    for other, what in (
        (fs.plan(digits.process, "dpmpp-2m", 10), "dpmpp-2m, 10 evaluations"),
        (fs.plan(digits.process, "ddim", 12), "ddim, 12 evaluations"),
        (fs.plan(digits.process, "ddim", 10, "karras"), "ddim, 10 evaluations"),
        (fs.plan(digits.process, "ddpm", 10), "ddpm with noise"),
    ):
        with pytest.raises(ValueError, match=asked.format(what + ".*")):
            other(model, noise(), label=3)
    with pytest.raises(ValueError, match="skipping 0.05, whose times nobody knows before"):
        fs.find("adaptive-diffusion")(plan)(model, noise(), label=3)
    # Whoever needs no run takes the model as it is.
    assert torch.equal(model(noise(), torch.tensor(1.0)).value, digits(noise(), torch.tensor(1.0)).value)


def test_it_says_what_it_knows(digits, tmp_path):
    plan = fs.plan(digits.process, "ddim", 10)
    bound = {"value": 0.0142, "share": 0.9, "sure": 0.95, "noises": 100}
    model = scheduled(digits, plan, ["whole", "output"] * 5, [2] * 10, bound=bound, figures={"cost": 5.0})
    assert str(model.bound) == "95% sure: 9 of 10 fresh samples within 0.014"
    assert str(Bound(0.1, 0.95, 0.9, 50)) == "90% sure: 95% fresh samples within 0.1"
    lines = str(model.schedule).splitlines()
    assert len(lines) == 10 and lines[0].split() == ["0", "t", "80", "whole"]
    assert lines[1].endswith("output: forecast, order 2")
    assert model.describe()["cache bound"] == str(model.bound)
    again = fs.load(fs.save(model, tmp_path / "model"))
    assert again.schedule == model.schedule and again.bound == model.bound and again.figures == {"cost": 5.0}
    assert torch.equal(plan(again, noise(), label=3), plan(model, noise(), label=3))


def test_a_damaged_folder_is_refused(digits, tmp_path):
    plan = fs.plan(digits.process, "ddim", 10)
    folder = fs.save(scheduled(digits, plan, ["whole", "output"] * 5), tmp_path / "model")
    text = (folder / "config.json").read_text()
    for damaged in (text.replace('"output"', '"whole"', 1), text[: len(text) // 2]):
        (folder / "config.json").write_text(damaged)
        with pytest.raises(ValueError, match="config.json"):
            fs.load(folder)


def test_bad_input(digits):
    plan = fs.plan(digits.process, "ddim", 4)
    with pytest.raises(ValueError, match="differ in length: 3, 4 and 4"):
        budget(digits, ["whole"] * 3, list(plan.moments), [1] * 4, "ddim")
    with pytest.raises(ValueError, match="unknown part 'below level 9': did you mean 'below level 0'"):
        scheduled(digits, plan, ["whole", "below level 9", "whole", "whole"])
    with pytest.raises(ValueError, match="orders must be whole numbers of at least 1"):
        scheduled(digits, plan, ["whole"] * 4, [1, 0, 1, 1])
