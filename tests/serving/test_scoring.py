"""Scores of captions by options: against fs.sample, and a run that was killed."""

from __future__ import annotations

import pytest
import torch

import fewstep as fs
import fewstep.serving.scoring as scoring
from fewstep.data.shapes import Spec, held_out, parse
from fewstep.metrics.shapes_verifier import check
from fewstep.serving.routing import Option
from fewstep.serving.scoring import judged, parts, score, shapes_captions

# A cache of so few evaluations saves little, and says so.
pytestmark = pytest.mark.filterwarnings("ignore:a plan of 8 evaluations leaves little to save")
OPTIONS = (Option("shapes", 1), Option("shapes", nfe=2, guidance=2.0), Option("cached", 8, "ddim"))


@pytest.fixture(scope="module")
def models():
    model = fs.load("shapes")
    return {"shapes": model, "cached": fs.cache(model, "deepcache", interval=2, order=1)}


@pytest.fixture(autouse=True)
def small_parts(monkeypatch):
    monkeypatch.setattr(scoring, "CHUNK", 4)


def brightness(pictures, captions):
    return pictures.flatten(1).mean(1).sigmoid()


def test_captions_are_different_and_the_same_everywhere():
    found = shapes_captions(200, 3)
    assert len(set(found)) == 200 and found[:50] == shapes_captions(50, 3) != shapes_captions(50, 4)
    others = shapes_captions(100, 3, without=found[:150], split="validation")
    assert not set(others) & set(found[:150]) and len(set(others)) == 100
    assert not any(held_out(parse(caption)) for caption in found) and isinstance(parse(found[0]), Spec)
    with pytest.raises(ValueError, match="n must be a whole number of at least 1"):
        shapes_captions(0)


def test_scores_are_those_of_the_pictures(models):
    """Picture k of caption i is sample i * pictures + k of the seed, whatever the option."""
    asked = shapes_captions(6, 5)
    found = score(models, OPTIONS, asked, pictures=2, seed=9, judge=brightness)
    every = [caption for caption in asked for _ in range(2)]
    for k, option in enumerate(OPTIONS):
        model = models[option.model] if option.guidance is None else fs.guide(models["shapes"], "cfg", scale=2.0)
        images = fs.sample(model, 12, steps=option.steps, nfe=option.nfe, solver=option.solver, seed=9, text=every)
        wanted = brightness(images, every).double().view(6, 2).mean(1)
        torch.testing.assert_close(found.quality[:, k], wanted, atol=1e-5, rtol=0)
    assert found.captions == tuple(asked)


def test_costs_count_what_the_network_does(models):
    """Two samples an evaluation under guidance; of a cache's eight, some are not whole."""
    asked = shapes_captions(3, 5)
    found = score(models, OPTIONS, asked, judge=brightness)
    plan = fs.plan(models["cached"].process, "ddim", 8)
    whole = plan.run(models["cached"], torch.randn(1, 3, 32, 32), text=asked[:1]).report
    assert [option.cost for option in found.options[:2]] == [1.0, 4.0] and found.unit == "evaluations"
    assert found.options[2].cost == pytest.approx(whole["cost"]) and 4 < whole["cost"] < 7
    timed = score(models, OPTIONS[:1], asked, judge=brightness, unit="seconds")
    assert timed.unit == "seconds" and 0 < timed.options[0].cost < 60


def test_the_judge_is_the_exact_verifier():
    from fewstep.data.shapes import render_caption

    asked = ["a red circle", "a blue cross above a green square"]
    images = torch.stack([render_caption(caption) for caption in asked])
    assert judged(images, asked).tolist() == [True, True] and judged(images, asked[::-1]).tolist() == [False, False]
    assert torch.equal(judged(images * 1.5, asked), check((images * 1.5).clamp(-1, 1), asked).full)


def test_a_killed_run_goes_on(models, tmp_path):
    asked, drawn = shapes_captions(10, 6), []
    whole = score(models, OPTIONS[:2], asked, judge=brightness)

    def dies(pictures, captions):
        if len(drawn) == 4:
            raise KeyboardInterrupt
        drawn.append(list(captions))
        return brightness(pictures, captions)

    with pytest.raises(KeyboardInterrupt):
        score(models, OPTIONS[:2], asked, judge=dies, folder=tmp_path / "run")
    assert len(drawn) == 4 and parts(OPTIONS[:2], asked) == 6
    rest, told = [], []

    def goes_on(pictures, captions):
        rest.append(list(captions))
        return brightness(pictures, captions)

    found = score(models, OPTIONS[:2], asked, judge=goes_on, folder=tmp_path / "run", advance=lambda: told.append(1))
    assert rest == [asked[4:8], asked[8:]] and len(told) == 6  # of the second option
    assert torch.equal(found.quality, whole.quality) and found.options == whole.options
    score(models, OPTIONS[:2], asked, judge=dies, folder=tmp_path / "run")  # nothing is left to do
    assert sorted(path.name for path in (tmp_path / "run").iterdir()) == ["scores.json", "scores.safetensors"]
    with pytest.raises(ValueError, match="holds the scores of other pictures, seed: choose another folder"):
        score(models, OPTIONS[:2], asked, judge=brightness, folder=tmp_path / "run", seed=1, pictures=2)
    (tmp_path / "run" / "scores.safetensors").write_bytes(b"damaged")
    with pytest.raises(ValueError, match="are damaged"):
        score(models, OPTIONS[:2], asked, judge=brightness, folder=tmp_path / "run")


def test_bad_input(models, tmp_path):
    asked = shapes_captions(2)
    (tmp_path / "note").write_text("x")
    for options, why in (
        ({"unit": "flops"}, "unit is 'evaluations' or 'seconds', got 'flops'"),
        ({"pictures": 0}, "pictures must be a whole number of at least 1"),
        ({"folder": tmp_path}, "is not empty, and holds no scores"),
        ({"folder": tmp_path / "note"}, "is a file; name a folder"),
        ({"judge": lambda pictures, captions: torch.ones(1)}, "a judge gives one number"),
        ({"judge": lambda pictures, captions: torch.full((2,), 3.0)}, "a judge gives one number"),
    ):
        with pytest.raises(ValueError, match=why):
            score(models, OPTIONS[:1], asked, **options)
    with pytest.raises(ValueError, match="is of none of the models shapes, cached"):
        score(models, [Option("digits", 4)], asked)
    with pytest.raises(ValueError, match="at least one caption and option"):
        score(models, OPTIONS, [])
