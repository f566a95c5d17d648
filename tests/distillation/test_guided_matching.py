"""PG-SB: where both scores agree nothing moves, whatever the scale; at scale 1 it is diff-instruct."""

from __future__ import annotations

import pytest
import torch
from distillation.matched import built, perceptron, shaken, train
from distillation.short import RUN, equal, weights

import fewstep as fs


def drawn_by(method, n: int = 6, seed: int = 0):
    return method.setting.mine(method.draw(n, torch.Generator().manual_seed(seed)))


@pytest.mark.parametrize("scale", [0.0, 1.0, 2.5, 7.0])
def test_the_gradient_is_zero_where_fake_and_teacher_agree(scale):
    size = []
    for differ in (False, True):
        method = built("pg-sb", scales=(scale, scale), fake="copy")
        if differ:
            shaken(method.fake)
        drawn = drawn_by(method)
        parts = torch.autograd.grad(method._loss(drawn).sum(), method.players["student"].parameters, allow_unused=True)
        size.append(max(float(part.abs().max()) for part in parts if part is not None))
    assert size[0] == 0 and size[1] > 1e-4


def test_both_answers_are_guided_by_their_own_empty_conditions():
    method = built("pg-sb", scales=(3.0, 3.0), fake="copy")
    shaken(method.fake)
    drawn, x = drawn_by(method), torch.randn(6, 2, generator=torch.Generator().manual_seed(4))
    x_t = method.setting.noised(x, drawn["eps"], drawn["t"])
    with torch.no_grad():
        found = method.answers(x, drawn)
        for model, answer in zip((method.fake, method.setting.base), found, strict=True):
            given, empty = (
                model(x_t, drawn["t"], label=label).x0 for label in (drawn["condition"]["label"], torch.full((6,), 3))
            )
            torch.testing.assert_close(answer, empty + 3 * (given - empty))


def test_at_scale_one_it_is_diff_instruct():
    ours, theirs = built("pg-sb", scales=(1, 1), fake="copy"), built("diff-instruct")
    drawn = drawn_by(ours)
    x = ours.samples(drawn)
    for method in (ours, theirs):
        shaken(method.fake)
    assert torch.equal(ours.loss(x, drawn), theirs.loss(x, drawn))
    near = built("pg-sb", scales=(1, 1), fake="copy")
    shaken(near.fake)  # the same answer by way of both conditions
    torch.testing.assert_close(near.loss(x, drawn | {"scale": 1 + 1e-7}), theirs.loss(x, drawn))
    before = theirs.setting.count.evaluations
    drawn["hidden"] = torch.zeros(6, dtype=torch.bool)
    assert torch.equal(ours.fake_loss(x.detach(), drawn), theirs.fake_loss(x.detach(), drawn))
    assert theirs.setting.count.evaluations == before + 18


def test_one_scale_an_iteration_and_some_conditions_are_hidden_from_the_fake():
    method, generator = built("pg-sb", scales=(1, 4)), torch.Generator().manual_seed(0)
    scales = torch.tensor([method.draw(2, generator)["scale"] for _ in range(64)])
    assert 1 <= float(scales.min()) < 1.2 and 3.8 < float(scales.max()) <= 4
    assert abs(float(scales.mean()) - 2.5) < 3 * (3 / 12**0.5) / 8
    drawn = drawn_by(method, 1000)
    assert abs(float(drawn["hidden"].double().mean()) - 0.1) < 0.03
    shaken(method.fake)
    x, drawn["hidden"] = method.samples(drawn).detach(), torch.ones(1000, dtype=torch.bool)
    hidden = method.fake_loss(x, drawn)
    drawn["condition"] = {"label": torch.full((1000,), 3)}
    assert torch.equal(method.fake_loss(x, drawn), hidden)


@pytest.mark.filterwarnings("ignore:At iteration")
def test_the_student_knows_the_guidance_inside_and_repeats_to_the_bit():
    base = built("pg-sb").setting.base
    made = [fs.distill(base, "pg-sb", scales=[1, 3], **RUN).model for _ in range(2)]
    assert made[0].student.guidance == 2.0 and equal(*map(weights, made))
    with pytest.raises(ValueError, match=r"this student's guidance is inside \(scale 2, by 'pg-sb'\)"):
        fs.guide(made[0], "cfg", scale=2.0)


def test_it_trains_both():
    method = built("pg-sb", 6)
    before = [weights(one) for one in (method.student, method.fake)]
    train(method, 6)
    after = [weights(one) for one in (method.student, method.fake)]
    assert all(not equal(a, b) for a, b in zip(before, after, strict=True))


def test_what_it_refuses():
    for scales in ((2, 1), (-1, 1), (1,), (1, float("inf"))):
        with pytest.raises(ValueError, match="scales must be two that rise from 0 or more"):
            built("pg-sb", scales=scales)
    base = built("pg-sb").setting.base
    with pytest.raises(ValueError, match="the teacher has guidance already"):
        fs.distill(fs.guide(base, "cfg", scale=2.0), "pg-sb", **RUN)
    with pytest.raises(ValueError, match="guidance needs a model that is conditioned on a label or a caption"):
        fs.distill(perceptron(), "pg-sb", **RUN)
