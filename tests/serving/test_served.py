"""What a server draws is what `fs.sample` and the command line draw."""

from __future__ import annotations

import pytest
import torch

import fewstep as fs
from fewstep.conditions.number import Number
from fewstep.core.student import Student
from fewstep.processes.vp import VP
from fewstep.sampling.mixed import run_mixed
from fewstep.serving.served import Limits, Served, Wanted, listed, numbered

TALL = {"rtol": 1e-3, "atol": 2e-5}  # the network's rounding depends on the size of a call
CAPTION = "a large red circle left of a small blue square"


def drawn(served: Served, *wanted: Wanted, max_batch: int = 64) -> list[torch.Tensor]:
    """All of them together, in shared calls."""
    every = [served.requests(one, max_batch, Limits()) for one in wanted]
    out = iter(run_mixed([request for each in every for request in each], served.model, max_batch))
    return [served.decoded(one, torch.cat([next(out) for _ in each])) for one, each in zip(wanted, every, strict=True)]


def test_samples_of_every_kind_in_shared_calls_are_those_of_their_runs_alone(digits):
    model = fs.load("digits")
    guided = fs.guide(model, "cfg", scale=2.5)
    picture = fs.sample(model, 1, label=7, seed=3)[0]
    mask = torch.zeros(1, 8, 8)
    mask[:, :, 4:] = 1
    known = fs.guide(model, "known", picture=picture, mask=1 - mask)
    wanted = {
        "label": Wanted(numbered(7, 6), label=3),
        "seeds": Wanted(listed((4, 9)), label=(1, 2), solver="ddpm", steps=4),
        "guided": Wanted(numbered(1, 2), label=5, guidance=2.5, steps=6),
        "init": Wanted(numbered(2, 2), label=7, init=picture, strength=0.5, steps=6),
        "mask": Wanted(numbered(5, 2), label=7, init=picture, mask=mask, steps=5),
        "both": Wanted(numbered(6, 1), label=7, init=picture, mask=mask, strength=0.7, steps=5),
    }
    expected = {
        "label": fs.sample(model, 6, label=3, seed=7),
        "seeds": fs.sample(model, 2, label=[1, 2], seeds=[4, 9], solver="ddpm", steps=4),
        "guided": fs.sample(guided, 2, label=5, seed=1, steps=6),
        "init": fs.sample(model, 2, label=7, seed=2, init=picture, strength=0.5, steps=6),
        "mask": fs.sample(known, 2, label=7, seed=5, steps=5),
        "both": fs.sample(known, 1, label=7, seed=6, init=picture, strength=0.7, steps=5),
    }
    for name, samples in zip(wanted, drawn(digits, *wanted.values(), max_batch=8), strict=True):
        torch.testing.assert_close(samples, expected[name], **TALL, msg=lambda text, name=name: f"{name}: {text}")
    assert torch.equal(expected["mask"][:, :, :, :4], picture[:, :, :4].expand(2, 1, 8, 4))


def test_captions_guidance_and_what_to_keep_away_from(shapes):
    model = fs.load("shapes")
    wanted = [
        Wanted(numbered(0, 2), text=CAPTION, steps=3),
        Wanted(numbered(1, 1), text="a red circle", guidance=2.0, negative="a small red circle", steps=4),
        Wanted(numbered(2, 1), steps=2),
    ]
    away = fs.guide(model, "cfg", scale=2.0, negative="a small red circle")
    expected = [
        fs.sample(model, 2, text=CAPTION, seed=0, steps=3),
        fs.sample(away, 1, text="a red circle", seed=1, steps=4),
        fs.sample(model, 1, seed=2, steps=2),
    ]
    for samples, one in zip(drawn(shapes, *wanted), expected, strict=True):
        torch.testing.assert_close(samples, one, **TALL)


def test_exact_samples_are_the_same_to_the_bit_whatever_shares_their_calls(exact_digits):
    mine = Wanted(numbered(3, 1), label=4, guidance=2.0, steps=5)
    (alone,) = drawn(exact_digits, mine)
    others = [Wanted(numbered(k, 1 + k % 3), label=k % 10, guidance=1 + k % 2, steps=3 + k) for k in range(9)]
    assert torch.equal(drawn(exact_digits, *others[:4], mine, *others[4:])[4], alone)
    assert torch.equal(drawn(exact_digits, others[1], mine, max_batch=4)[1], alone)
    # A run of many samples has the same bits: its calls are as large.
    guided = fs.guide(fs.load("digits"), "cfg", scale=2.0)
    assert torch.equal(fs.sample(guided, 32, label=4, seed=3, steps=5)[:1], alone)


def test_a_models_own_plan_and_its_own_guidance_are_taken(digits):
    model = fs.load("digits")
    plan = fs.plan(model.process, "dpmpp-2m", steps=4)
    model.plan = plan
    assert Served(model).plan(Wanted(numbered(0, 1))) is plan
    assert Served(model).plan(Wanted(numbered(0, 1), guidance=3.0)).nfe == 10
    distilled = fs.wrap(
        lambda x, t, guidance: x * guidance.view(-1, 1),
        model.process,
        "x0",
        (2,),
        conditions={"guidance": Number(1, 8)},
    )
    served = Served(distilled)
    assert served.model is distilled and served.condition(Wanted(numbered(0, 1), guidance=2.0)) == {"guidance": 2.0}


def test_a_student_is_served_as_it_is_and_its_guidance_is_inside():
    model = fs.load("digits")
    model.student = Student("jump", "dmd2", times=(2.0, 0.4), guidance=2.0)
    served = Served(model)
    assert not served.describe()["guidance"] and served.plan(Wanted(numbered(0, 1))).times == (2.0, 0.4, 0.0)
    with pytest.raises(ValueError, match=r"guidance is inside \(scale 2, by 'dmd2'\)"):
        served.condition(Wanted(numbered(0, 1), guidance=3.0))
    with pytest.raises(ValueError, match="takes at most 2 steps, got 4"):
        served.plan(Wanted(numbered(0, 1), steps=4))


@pytest.mark.parametrize(
    "wanted, said",
    [
        ({"steps": 1000}, "steps must be 1 to 250, got 1000"),
        ({"nfe": 0}, "nfe must be 1 to 250, got 0"),
        ({"steps": 3, "nfe": 3}, "either steps or nfe"),
        ({"seeds": numbered(0, 65)}, "n must be 1 to 64, got 65"),
        ({"label": 10}, "label 10 is out of range"),
        ({"text": "a cat"}, "reads no captions, so prompt must be empty: ask for a label"),
        ({"guidance": float("nan")}, "guidance must be a finite number"),
        ({"guidance": -1.0}, "guidance|scale"),
        ({"negative": "a cat", "guidance": 2.0}, "this model reads none"),
        ({"solver": "dpm-solver-adaptive"}, "decides as it runs"),
        ({"solver": "euller"}, "unknown solver 'euller'"),
        ({"timesteps": "nowhere"}, "unknown .*rule 'nowhere'"),
        ({"strength": 0.5}, "give init"),
        ({"init": torch.zeros(1, 8, 8), "strength": 1.0}, "strength must be above 0 and below 1"),
        ({"init": torch.zeros(1, 8, 8), "strength": 0.0}, "strength must be above 0 and below 1"),
        ({"plan": fs.plan(fs.load("digits").process, "ddim", 3), "steps": 3}, "either plan or those"),
        ({"plan": fs.plan(VP(beta_max=7.0), "ddim", 3)}, "another process"),
        ({"plan": fs.plan(fs.load("digits").process, "ddim", 300)}, "300 evaluations, and this server at most 250"),
    ],
)
def test_what_cannot_be_is_named(digits, wanted, said):
    with pytest.raises(ValueError, match=said):
        digits.requests(Wanted(**({"seeds": numbered(0, 1)} | wanted)), 64, Limits())


def test_what_it_says_of_itself(digits, shapes):
    assert digits.describe() == {
        "shape": [1, 8, 8],
        "classes": 10,
        "captions": False,
        "words": None,
        "guidance": True,
        "pictures": True,
        "evaluations": None,
    }
    assert shapes.describe()["captions"] and "circle" in shapes.describe()["words"]
